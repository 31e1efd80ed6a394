//! The water level: one pacing rate that all flows of an upload limit share.
//!
//! TCP paces each flow by itself and knows nothing of the others. So every flow gets the same cap, and
//! the cap is moved until all of them together use the limit: greedy flows stand at the cap, slow ones
//! below it. The bucket refuses what exceeds the limit meanwhile; its debt and its credit tell how far off
//! the level has been. Where flows send whole buffers, each is told besides when its turn is ([`in_turn`]).

/// Shortest time between two looks, ns.
pub const MIN_PERIOD_NS: u64 = 100_000_000;
/// Longest time between two looks, ns.
pub const MAX_PERIOD_NS: u64 = 6_000_000_000;
/// A look is due when about so many bytes may have passed.
const PERIOD_BYTES: u64 = 200_000;
/// And no sooner than a flow at its cap takes for most of a GSO buffer, in bytes: over a short line TCP sends whole
/// buffers however low the cap, and until the next one a new level has done nothing.
const FLOW_BYTES: u64 = 67_000;
/// After a pause this long (ns) the last figures say nothing about now.
const STALE_NS: u64 = 12_000_000_000;
/// Debt up to which paced TCP still passes, ticks of the bucket: two flows whose bursts fall together are not
/// too fast, and one that is refused with nothing in flight stands still for 200 ms and more. Every byte is
/// charged all the same.
pub const BURST_TICKS: u64 = 100_000_000 * crate::bucket::TICKS_PER_NS;
/// The level never falls below this fraction of the limit.
const FLOOR: u64 = 256;
/// And never rises above the limit by more than this fraction of it: what was missed has to be made up for.
const HEADROOM: u64 = 16;
/// The same where a GSO buffer takes longer than the burst that is let pass: a flow that sends whole buffers is off by
/// most of one at any time, and must not be off by what it makes up for on top (measured: 1.036 of 100 KB/s in 30 seconds).
const SLOW_HEADROOM: u64 = 256;
/// Limits below this rate, bytes/s, are slow in that sense.
pub const SLOW: u64 = FLOW_BYTES * 1_000_000_000 * crate::bucket::TICKS_PER_NS / BURST_TICKS;
/// In so many parts of a limit, or of a level, a look reckons.
const WHOLE: i64 = 1 << 14;
/// How far a look moves the level at most: many flows may be idle when a limit is set, and greedy later.
const MOST_UP: i64 = WHOLE;
const MOST_DOWN: i64 = WHOLE / 4;

/// Limits from this rate on, bytes/s, are fast: a look sees a dozen GSO buffers and more, so that what it finds used is what
/// the flows use. At lower rates one more buffer, or one less, would pass for a pause or for too much. And there is no need of
/// turns.
pub const FAST: u64 = 8_000_000;
/// So much of credit, bytes, is more than the buffers that happen not to fall into a look.
const MISSING: u64 = 3 * FLOW_BYTES;
/// 17/16 of the limit, in parts of parts.
const MOST_USED: i64 = (WHOLE + WHOLE / 16) * WHOLE;

/// Up to this level, bytes/s, each flow is told its turn ([`in_turn`]): a buffer takes no less than a look there.
pub const TURNS: u64 = FLOW_BYTES * 1_000_000_000 / MIN_PERIOD_NS;
/// How much later its next buffer may come so, in bytes at its level.
const MOST_LATER: i64 = (FLOW_BYTES * 5 / 8) as i64;

/// No flow gets a lower cap, bytes/s. Over a short line TCP sends 64 KB at a time, and then waits for as long as they take at
/// the cap that stood then, also when the limit has ended meanwhile: 8 s at this one, minutes at what a limit of 1 KB/s
/// would give each of four flows. Below it the bucket holds alone.
const LEAST_CAP: u64 = 8_000;

/// Time between two looks at `rate` and `level` bytes/s, µs.
#[inline(always)]
pub fn period_us(rate: u64, level: u64) -> u32 {
    let all = PERIOD_BYTES * 1_000_000_000 / rate.max(1);
    let one = FLOW_BYTES * 1_000_000_000 / level.max(1);
    let period = if all > one { all } else { one };
    // Of two constants: nothing of its panic is left.
    (period.clamp(MIN_PERIOD_NS, MAX_PERIOD_NS) / 1_000) as u32
}

/// What a look at a limit finds.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Time since the last look, ns.
    pub elapsed_ns: u64,
    /// IP bytes that passed in it.
    pub used: u64,
    /// Debt of the bucket, in ticks; credit below zero.
    pub debt_ticks: i64,
    /// Looks in a row before this one that found little of the limit used.
    pub pauses: u16,
}

/// What a look makes of it.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// The level, IP bytes/s.
    pub level: u64,
    /// [`Use::pauses`] for the next look.
    pub pauses: u16,
    /// Whether half of what one flow at the level sends has passed, and more: else none stands there.
    pub in_want: bool,
}

/// How a level is moved: by how many buffers a look can see, and what one more or less of them says.
#[derive(Clone, Copy)]
enum Pace {
    /// Limits from [`FAST`] on.
    Fast,
    /// Below it, with one flow or a few; and below [`SLOW`], where a look sees three buffers.
    Single,
    /// Flows that are told their turns.
    Turns,
}

impl Pace {
    #[inline(always)]
    fn of(level: u64, rate: u64) -> Self {
        if rate >= FAST {
            Self::Fast
        } else if level > TURNS || rate < SLOW {
            Self::Single
        } else {
            Self::Turns
        }
    }

    /// Looks that may find little of the limit used before the level follows: bbr lets all but stand still for 200 ms every
    /// ten seconds, all flows of a line at the same time. Measured in the second after: 1.34 of a fast limit; in turns
    /// every third run of twelve seconds had a second above 1.10.
    #[inline(always)]
    fn most_pauses(self) -> u16 {
        match self {
            Self::Fast => 3,
            // A look may see three buffers.
            Self::Single => 0,
            // One is as long as bbr's pause and a buffer together.
            Self::Turns => 1,
        }
    }
}

/// The level after a look at a limit of `rate` bytes/s. All levels are IP bytes/s, from about `rate / 256` to
/// a little more than `rate`.
///
/// It goes up by a part of what is missing, and down with the debt of the bucket (up with its credit), which is what all that
/// was missed, or was too much, adds up to. So what the bursts of a look hide comes out in the next ones. The fewer buffers
/// a look sees the smaller the part, unless much is missing; and where flows have their turns, what a common pause
/// left is made up for so slowly that no second has a buffer too many.
/// Nothing is made of what was refused: a single burst is tried again and again.
#[inline(always)]
pub fn next_level(level: u64, rate: u64, found: Use) -> Next {
    if found.elapsed_ns > STALE_NS {
        return Next { level, pauses: 0, in_want: false };
    }
    // Microseconds, so that no product below leaves 64 bits: used < 2^40, rate <= 2^37.
    let elapsed_us = (found.elapsed_ns / 1_000).max(1);
    let used_rate = (found.used.min(1 << 40) * 1_000_000 / elapsed_us).min(2 * rate);
    let used = (used_rate * WHOLE as u64 / rate.max(1)) as i64;
    let pace = Pace::of(level, rate);
    let little = if matches!(pace, Pace::Turns) { WHOLE * 3 / 4 } else { WHOLE / 2 };
    let pauses = if used < little { found.pauses.saturating_add(1) } else { 0 };
    let in_want = used_rate > level / 2;
    // Flows that will go on where they were: a higher level would have them exceed the limit all together.
    if pauses != 0 && pauses <= pace.most_pauses() {
        return Next { level, pauses, in_want };
    }
    let debt = found.debt_ticks;
    let mut change = WHOLE - used;
    // A second of debt is so much of the level: a half, a quarter, and a sixteenth of credit.
    let caught_up;
    match pace {
        Pace::Fast => {
            change >>= 1;
            caught_up = debt >> 23;
        }
        Pace::Single => {
            // A second is 2^20 units of 2^16 ticks, less 7 %.
            let credit = if debt < 0 { (debt >> 16).unsigned_abs() } else { 0 };
            let much = pauses != 0 || credit.wrapping_mul(rate) >> 20 >= MISSING;
            change >>= if much { 1 } else { 3 };
            caught_up = debt >> 24;
        }
        Pace::Turns => {
            // What follows a pause says no more than the pause.
            if found.pauses != 0 && change < 0 {
                change = 0;
            }
            if pauses == 0 {
                change >>= 2;
            }
            caught_up = if debt < 0 { debt >> 26 } else { debt >> 24 };
        }
    }
    change -= if caught_up > WHOLE { WHOLE } else { caught_up };
    // Of two constants: nothing of its panic is left.
    change = change.clamp(-MOST_DOWN, MOST_UP);
    // What the same flows would use: not far beyond the limit, however much there is to make up for.
    let most_change = MOST_USED / used.max(1) - WHOLE;
    if matches!(pace, Pace::Fast) && change > most_change {
        change = most_change;
    }
    let next = level.wrapping_add(((level as i64 * change) >> 14) as u64);
    let floor = rate / FLOOR + 100;
    let most = rate + if rate < SLOW { rate / SLOW_HEADROOM } else { rate / HEADROOM };
    let level = if next > most {
        most
    } else if next < floor {
        floor
    } else {
        next
    };
    Next { level, pauses, in_want }
}

/// So many flows are expected at most where they can only be guessed: many connections may be idle.
pub const MOST_EXPECTED: u64 = 8;

/// The level when another flow comes while none is in want of more ([`Next::in_want`]): at the level of one, eight that begin
/// together would exceed the limit eight times, and those that the bucket refuses starve until the level has fallen. As if
/// all that come so were greedy, up to [`MOST_EXPECTED`]; the first alone changes nothing. Beside a flow that stands at the
/// level already nobody is expected to: short connections, one after the other, would take it away from that one.
#[inline(always)]
pub fn level_with_another(level: u64, rate: u64) -> u64 {
    if level >= rate {
        return rate.max(2) - 1;
    }
    if level <= rate / MOST_EXPECTED {
        return level;
    }
    // rate / (rate / level + 1), in KB/s: no product leaves 64 bits.
    let (low, high) = (level / 1_000 + 1, rate / 1_000 + 1);
    (low * high / (low + high) * 1_000).max(rate / MOST_EXPECTED).min(level)
}

/// The level for one flow whose last buffer found the bucket `found_ticks` in debt (below zero: credit).
///
/// Flows that send whole buffers and know nothing of each other do so at the same time now and then: more passes than should,
/// one is refused, and then all are silent. The bucket is a clock that all of them see: who finds it in debt came too soon after
/// another, and sends its next buffer later by half of that. So each finds a turn of its own. Nobody comes sooner: what all of
/// them missed the level makes up for.
#[inline(always)]
pub fn in_turn(level: u64, found_ticks: i64) -> u64 {
    const SECOND: i64 = (1_000_000_000 * crate::bucket::TICKS_PER_NS) as i64;
    if level > TURNS {
        return level;
    }
    // What the level is in half of that time: a second is 2^20 units of 2^16 ticks, less 7 %.
    let later = (level as i64).wrapping_mul(found_ticks.clamp(0, SECOND) >> 16) >> 21;
    // Never 0, which not every compiler sees.
    level * FLOW_BYTES / (FLOW_BYTES + later.clamp(0, MOST_LATER) as u64).max(1)
}

/// Round trips in µs: over a line with a shorter one TCP hands over up to 64 KB at once, however low the cap. It does so by the
/// shortest round trip that it has seen lately.
const NEAR_US: u32 = 2_000;
/// Nor may round trips have grown so long that a window would be a limit by itself; one that is set bears twice that.
const GROWN_US: u32 = 30_000;
/// Up to this level, bytes/s, a window that is set stays.
pub const HELD: u64 = TURNS + TURNS / 4;
/// What every window has, in segments: TCP begins with as many.
const LEAST_WINDOW: u32 = 10;
/// Ten full segments, bytes: a window has as many more as pass in 100 ms.
const TEN_SEGMENTS: u64 = 14_480;

/// Segments that a flow at `level` bytes/s may have under way, so that it sends a little often and not 64 KB twice a second
/// (TCP hands over half a window at most): its turns are finer so, and no second has a buffer too many. 0: leave it as it is.
/// `min_rtt_us`, `rtt_us`: its shortest round trip and a usual one; `is_set`: it has such a window now.
#[inline(always)]
pub fn most_under_way(level: u64, min_rtt_us: u32, rtt_us: u32, is_set: bool) -> u32 {
    let (most_level, longest) = if is_set { (HELD, 2 * GROWN_US) } else { (TURNS, GROWN_US) };
    if level == 0 || level > most_level || min_rtt_us >= NEAR_US || rtt_us > longest {
        return 0;
    }
    LEAST_WINDOW + (level / TEN_SEGMENTS) as u32
}

/// What to set as a flow's pacing rate: the kernel paces payload, the limit counts IP bytes. Bytes/s, at least
/// 8 KB/s.
#[inline(always)]
pub fn payload_rate(level: u64, ipv6: bool) -> u64 {
    // Of 1500 bytes 52 are headers with IPv4, 72 with IPv6 (timestamps included).
    let payload = if ipv6 { 1_428 } else { 1_448 };
    (level / 1_500 * payload + level % 1_500 * payload / 1_500).max(LEAST_CAP)
}

#[cfg(test)]
mod tests;
