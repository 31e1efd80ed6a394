//! The manual page: all that the help says, from the same definition, and where things are kept.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_mangen::Man;
use roff::{Roff, roman};

use super::args::{AFTER_HELP, Args};
use crate::{
    error::{Context, Result},
    output,
};

const FILES: &str = "\
/run/chadthrottle
    The socket, the lock and the journal of the process that holds the limits (--runtime-dir)
$XDG_STATE_HOME/chadthrottle/tui.log, ~/.local/state/chadthrottle/tui.log
    What is logged while the screens are shown";

const ENVIRONMENT: &str = "\
RUST_LOG
    What is logged, in the form of the tracing library: chadthrottle=debug
NO_COLOR
    No colours, on the screens neither";

/// `man`.
pub fn man() -> Result<()> {
    let mut page = Vec::new();
    write(&mut page).context("make the manual page")?;
    output::result(&String::from_utf8_lossy(&page))
}

fn write(page: &mut Vec<u8>) -> io::Result<()> {
    // What comes after the help of the whole has sections of its own here.
    let command = Args::command().after_help(None);
    let whole = Man::new(command.clone()).manual("ChadThrottle");
    whole.render_title(page)?;
    whole.render_name_section(page)?;
    whole.render_synopsis_section(page)?;
    whole.render_description_section(page)?;
    whole.render_options_section(page)?;
    section(page, "Commands", None)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("chadthrottle {}", sub.get_name());
        let man = Man::new(sub.clone().display_name(&name).bin_name(&name));
        let mut text = Vec::new();
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        subsection(page, sub.get_name(), &String::from_utf8_lossy(&text))?;
    }
    for block in AFTER_HELP.split("\n\n") {
        let (title, text) = block.split_once('\n').unwrap_or((block, ""));
        section(page, title.trim_end_matches(':'), Some(text))?;
    }
    section(page, "Files", Some(FILES))?;
    section(page, "Environment", Some(ENVIRONMENT))
}

/// A section with text that keeps its lines.
fn section(page: &mut impl Write, title: &str, text: Option<&str>) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title.to_uppercase().as_str()]);
    if let Some(text) = text {
        roff.control("nf", []);
        for line in text.lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
    }
    roff.to_writer(page)
}

/// What was made as sections of a page, as one subsection of this one.
fn subsection(page: &mut impl Write, title: &str, text: &str) -> io::Result<()> {
    writeln!(page, ".SS {title}")?;
    for line in text.lines() {
        match line.strip_prefix(".SH ") {
            Some(_) => writeln!(page, ".PP")?,
            // The definitions that every page made begins with stand at the top of the whole.
            None if line.starts_with(".ie ") || line.starts_with(".el ") => {}
            None => writeln!(page, "{line}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let mut page = Vec::new();
        write(&mut page).unwrap();
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn it_has_every_command_and_every_option() {
        let page = page().replace("\\-", "-");
        let command = Args::command();
        for sub in command.get_subcommands() {
            assert_eq!(page.contains(&format!(".SS {}\n", sub.get_name())), !sub.is_hide_set());
            for option in sub.get_arguments().filter_map(|option| option.get_long()) {
                assert!(sub.is_hide_set() || page.contains(&format!("--{option}")), "{option}");
            }
        }
        for option in command.get_arguments().filter_map(|option| option.get_long()) {
            assert!(page.contains(&format!("--{option}")), "{option}");
        }
        for title in ["NAME", "SYNOPSIS", "TARGETS", "RATES", "EXIT CODES", "EXAMPLES", "FILES"] {
            assert!(
                page.contains(&format!(".SH {title}\n")) || page.contains(&format!(".SH \"{title}\"\n")),
                "{title}"
            );
        }
    }
}
