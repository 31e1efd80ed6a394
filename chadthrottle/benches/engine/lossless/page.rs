//! The page: a table of all cells, the worst of ours, and a plot.

use std::{fmt::Write, fs, path::Path};

use chadthrottle::{Error, Kind, Result, model::Direction};

use super::{Cell, Design, Outcome, beside::Beside, middle};
use crate::stats::median;

const HEAD: &str = "\
A limit is set in the middle of a transfer at full speed, and measured for eight seconds (uploads at 100 KB/s with up to eight \
connections for 30: there a sender may hand over 64 KB every 0.65 s): from two seconds after it, or from four where the line has \
a length. The line between the two namespaces carries eight times the limit, 150 MB/s at most; what is under way on it \
beyond its length is at most 200 ms of it (the receivers' buffers are set so), and its buffer holds 500 ms: so it loses nothing \
by itself, which would be sent again after the limit, whoever limits. At a round trip of 0 it is a pair of virtual devices. \
*the same, no queue*: a filter of somebody else's decides what arrives before ours can lead it into the queue, so that windows \
and the bucket hold alone; there the limit comes before the transfer, for without a queue most of what is under way is lost. \
*naive bucket*: an eBPF program with the token bucket as it is usually written, a second's worth deep, which drops. *nft by hand* \
drops what is over the rate; *HTB by hand* is one class, on download behind an IFB, with `tc`'s defaults.

- *goodput*: payload that was received, as a share of the limit. A limit counts IP bytes, of which full packets carry 0.965 as \
payload: that is the ceiling. *off*: distance from it.
- *passed*: IP bytes that our limit let through in that time, by its own count, as a share of the limit.
- *again*: the part of the sender's bytes that it sent twice, from one second after the limit on; *packets*: the same in packets.
- *caused*: what was sent twice from the limit on, beyond what the line itself had lost, as a part of all sent from then on: what \
the limit costs, the switch included.
- *fair*: the slowest connection's share of the fastest one's. *best second*: the most that was received, and that *passed*, in \
one second, as a share of the limit.
- *wait*: how long a packet waits in our queue, median, in ms. *own trip*: round trip of the limited connections, as their \
senders' TCP smoothes it, median, in ms.
- *others' ping*: what a ping of a process without a limit takes longer meanwhile than beside as much traffic without a limit, \
median, in ms.
- *busy*: of one processor, all together, traffic and the line included, median.

What a backend costs in processor time beside none is in [backends.md](backends.md).

![Sent again, by design](lossless.svg)

";

const COLUMNS: &str = "\
| held by | direction | limit MB/s | round trip ms | connections | control | goodput | off | passed | again | packets | caused | fair | best second | passed | wait | own trip | others' ping | busy |
|---|---|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
";

const SHORT: &str = "\
## In short

| held by | direction | cells | goodput | off, median | again, median | most | caused, median | most | fair, median | best second, most | others' ping, most |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|
";

const WHY: &str = "
What is known to cost, the furthest off first:

- Downloads of 64 connections at 100 KB/s over a line. A window below two segments would stall a connection, so 64 of them keep \
185 KB on their way: two seconds of such a limit, whatever queue it waits in (*own trip*). Senders whose round trip grows from \
20 ms to more than a second within one take some packets for lost and send them twice. The limit holds (*passed* 0.999 to \
1.002), but not without loss; with eight connections nothing is sent again, and the wait is a quarter of a second.
- Uploads of many connections at 100 KB/s over no distance. Each sends 64 KB at a time, 0.65 s of the limit, so that \
single seconds carry twice as much or a third; in 30 seconds eight of them use 0.971 to 1.021 of it (28 runs with this \
much credit). Of 64 connections eight seconds hold twelve such buffers, so one more or less is 8 %, and most \
connections do not get a turn (*fair* 0.00, also at 1 MB/s). (Ten cells of uploads at 100 KB/s, and four at 100 MB/s, \
are from after the run of the others: eight of bbr at 100 MB/s had seconds of 1.20 and 1.34 before, when they made up \
for their common stop at once.) Uploads of up to 670 KB/s each are told their turns since then, and \
hand over 13 KB at once where their congestion windows can be held: with that eight at 1 MB/s had 0.979 to 1.007 of it in 28 \
runs, the slowest 0.63 to 0.99 of the fastest (bbr 0.97 to 0.99), and 1.05 in the best second at the receiver.
- bbr all but stops for 200 ms and a round trip every ten seconds, to measure the round trip. The queue of 45 ms runs empty \
meanwhile; a twelfth of a second is caught up with afterwards (before that was so, half a second with such a stop carried 0.35 \
to 0.76 of the limit). Over 80 ms that leaves 0.936 to 0.942 of the limit as payload from one connection; without a queue, where the \
windows grow with the bucket's credit, 0.960.
- Windows without a queue lose next to nothing over 20 and 80 ms: eight connections at 1 MB/s over 20 ms, where each \
one's share of the line is less than two segments, sent 0.09 % again at most. Over no distance, where that share is \
less than one, it is 6 to 25 %, of the naive bucket's 14 to 49 %. (These cells at 1 MB/s over 20 ms are from after the run of \
the others: with windows of two segments at least it was 1.5 to 2.7 %, now it is one and a quarter.)
";

const SWITCHED: &str = "
## Switched on in the middle

Eight connections that download at 8 MB/s over a line, or as fast as they go over none, are held to 1 MB/s: *caused* from the \
table, and what ours is of the naive bucket's.

| round trip ms | control | chadthrottle | naive bucket | ratio |
|--:|---|--:|--:|--:|
";

const BESIDE: &str = "
## Traffic without a limit, beside one

One connection of a process without a limit, as fast as it goes over a pair of virtual devices (the processor is what \
bounds it, so that every instruction on its way counts), while another process downloads: by itself at 1 MB/s, and held to \
0.5 MB/s, in turn. *share*: with the limit, of that without; median of nine pairs, and without the lowest and the highest.

| direction | without, MB/s | share | |
|---|--:|--:|--:|
";

/// A line of the table.
pub fn row(outcome: &Outcome) -> String {
    let Cell { design, direction, rate, flows, congestion, round_trip_ms } = outcome.cell;
    format!(
        "| {} | {direction} | {} | {round_trip_ms} | {flows} | {congestion} | {:.3} | {:.3} | {} | {:.2} % | {:.0} | {:.2} % | \
         {:.2} | {:.2} | {} | {} | {:.1} | {:+.2} | {:.0} % |",
        design.name(),
        rate as f64 / 1e6,
        outcome.goodput,
        outcome.distance(),
        outcome.passed.map(|passed| format!("{passed:.3}")).unwrap_or_default(),
        outcome.again * 100.0,
        outcome.packets,
        outcome.caused * 100.0,
        outcome.fairness,
        outcome.most,
        outcome.most_passed.map(|most| format!("{most:.2}")).unwrap_or_default(),
        outcome.wait.map(|wait| format!("{wait:.0}")).unwrap_or_default(),
        outcome.round_trip,
        outcome.ping,
        outcome.busy * 100.0,
    )
}

/// A line for each design and direction.
fn short(outcomes: &[Outcome]) -> String {
    let mut text = SHORT.to_owned();
    for design in Design::ALL {
        for direction in Direction::ALL {
            let of = |value: fn(&Outcome) -> f64| {
                let wanted =
                    |outcome: &&Outcome| outcome.cell.design == design && outcome.cell.direction == direction;
                let mut values: Vec<_> = outcomes.iter().filter(wanted).map(value).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            let goodput = of(|outcome| outcome.goodput);
            let (Some(least), Some(most)) = (goodput.first(), goodput.last()) else { continue };
            let again = of(|outcome| outcome.again * 100.0);
            let caused = of(|outcome| outcome.caused * 100.0);
            let last = |values: &[f64]| values.last().copied().unwrap_or_default();
            let _ = writeln!(
                text,
                "| {} | {direction} | {} | {least:.3} to {most:.3} | {:.3} | {:.2} % | {:.2} % | {:.2} % | {:.2} % | {:.2} | \
                 {:.2} | {:+.2} |",
                design.name(),
                goodput.len(),
                median(of(Outcome::distance)),
                median(again.iter().copied()),
                last(&again),
                median(caused.iter().copied()),
                last(&caused),
                median(of(|outcome| outcome.fairness)),
                last(&of(|outcome| outcome.most)),
                last(&of(|outcome| outcome.ping)),
            );
        }
    }
    text
}

/// What setting a limit in the middle of a transfer costs, beside the naive bucket: a transfer of 8 MB/s, and over the
/// cable one as fast as it goes, of eight connections that are held to 1 MB/s.
fn switched(outcomes: &[Outcome]) -> String {
    let mut text = SWITCHED.to_owned();
    for ours in outcomes.iter().filter(|outcome| outcome.cell.design == Design::Ours) {
        let naive = Cell { design: Design::Naive, ..ours.cell };
        let same = |outcome: &&Outcome| outcome.cell == naive;
        let Some(naive) = outcomes.iter().find(same) else { continue };
        let Cell { direction, rate, congestion, round_trip_ms, .. } = ours.cell;
        if direction == Direction::Download && rate == 1_000_000 {
            let _ = writeln!(
                text,
                "| {round_trip_ms} | {congestion} | {:.2} % | {:.2} % | {:.3} |",
                ours.caused * 100.0,
                naive.caused * 100.0,
                ours.caused / naive.caused
            );
        }
    }
    text
}

/// The section about traffic without a limit.
pub fn beside(measured: &[Beside]) -> String {
    let mut text = BESIDE.to_owned();
    for Beside { direction, free, share, spread: (least, most) } in measured {
        let _ = writeln!(text, "| {direction} | {:.0} | {share:.3} | {least:.3} to {most:.3} |", free / 1e6);
    }
    text
}

/// Prints the page, and writes it with its plot.
pub fn write(outcomes: &[Outcome], beside: &[Beside], folder: Option<&Path>) -> Result<()> {
    let mut page = format!(
        "# Limits side by side\n\nWritten by `cargo xtask bench --only lossless --full`. {}\n\n{HEAD}{}\n## All cells\n\n{COLUMNS}",
        crate::page::machine(),
        short(outcomes),
    );
    for outcome in outcomes {
        page += &row(outcome);
        page.push('\n');
    }
    let mut worst: Vec<_> = outcomes.iter().filter(|outcome| outcome.cell.design == Design::Ours).collect();
    worst.sort_by(|one, other| other.distance().total_cmp(&one.distance()));
    let _ = write!(page, "\n## The five cells of ours that are furthest off\n\n{COLUMNS}");
    for outcome in worst.into_iter().take(5) {
        page += &row(outcome);
        page.push('\n');
    }
    page += WHY;
    page += &switched(outcomes);
    page += &self::beside(beside);
    println!("{page}");
    let Some(folder) = folder else { return Ok(()) };
    for (name, text) in [("lossless.md", page), ("lossless.svg", plot(outcomes))] {
        let path = folder.join(name);
        fs::write(&path, text)
            .map_err(|cause| Error::caused(Kind::Failed, format!("write {}", path.display()), &cause))?;
    }
    Ok(())
}

/// Bars: what downloads send again because of a limit, by design and round trip, in the middle of all cells.
fn plot(outcomes: &[Outcome]) -> String {
    const WIDTH: f64 = 720.0;
    const LEFT: f64 = 190.0;
    const BAR: f64 = 20.0;
    let mut trips: Vec<u64> = outcomes.iter().map(|outcome| outcome.cell.round_trip_ms).collect();
    trips.sort_unstable();
    trips.dedup();
    let mut bars = Vec::new();
    for trip in trips {
        for (design, colour) in
            Design::ALL.into_iter().zip(["#1b7837", "#7fbf7b", "#762a83", "#b2182b", "#2166ac"])
        {
            let wanted = |cell: &Cell| {
                cell.design == design
                    && cell.round_trip_ms == trip
                    && cell.direction == Direction::Download
                    && cell.flows == 8
                    && cell.rate <= 10_000_000
            };
            if let Some(share) = middle(outcomes, wanted, |outcome| outcome.caused) {
                bars.push((format!("{trip} ms, {}", design.name()), share * 100.0, colour));
            }
        }
    }
    let most = bars.iter().map(|(_, share, _)| *share).fold(1.0, f64::max);
    let height = 40.0 + bars.len() as f64 * (BAR + 4.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\">Downloads of 8 \
         connections: sent again because of the limit, of all sent since it (median)</text>\n"
    );
    for (number, (name, share, colour)) in bars.iter().enumerate() {
        let top = 32.0 + number as f64 * (BAR + 4.0);
        let length = share / most * (WIDTH - LEFT - 80.0);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text><rect x=\"{LEFT}\" y=\"{top}\" \
             width=\"{length:.1}\" height=\"{BAR}\" fill=\"{colour}\"/><text x=\"{:.1}\" y=\"{}\">{share:.2} %</text>",
            LEFT - 8.0,
            top + 15.0,
            LEFT + length + 6.0,
            top + 15.0,
        );
    }
    svg + "</svg>\n"
}
