//! Arguments, and one file a command.
//!
//! A command resolves its arguments, asks the owner, and lets [`crate::output`] show the answer. Whatever
//! goes wrong is returned; it is printed, and becomes the exit code, in [`main`] only.

use std::{ffi::OsString, fs::File, io, process::ExitCode, sync::Mutex};

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::{
    error::{Error, Kind, Result},
    output, owner, selftest,
};

mod args;
pub(crate) mod backends;
mod clear;
mod completions;
mod explain;
pub(crate) mod hint;
mod limit;
mod man;
mod monitor;
pub(crate) mod resolve;
mod run;
mod session;
pub(crate) mod signals;
mod status;
mod tui;

use args::{Args, Color, Command, Global, Json};

/// The whole program: reads the arguments, does what they say, returns the exit code.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    match completions::answer(&words) {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error, None);
            return ExitCode::from(error.kind.exit_code());
        }
    }
    // The parser's own help and errors are coloured too, so this comes before it.
    if let Some(color) = color_asked_for(&words) {
        color.write_global();
    }
    let args = match Args::try_parse_from(&words) {
        Ok(args) => args,
        Err(error) => return parser_says(&error),
    };
    let screens = args.is_tui().then(crate::tui::log::open);
    start_log(args.global.verbose, screens);
    let in_run = matches!(args.command, Some(Command::Run(_)));
    let limits = !matches!(args.command, Some(Command::Status(_) | Command::Clear(_) | Command::Explain(_)));
    match execute(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let hint = hint::mend(&error, limits, &words);
            output::error(&error, hint.as_deref());
            ExitCode::from(match error.kind {
                Kind::Usage => Kind::Usage.exit_code(),
                // Other codes are those of the command that `run` runs.
                _ if in_run => run::FAILED,
                kind => kind.exit_code(),
            })
        }
    }
}

fn execute(args: Args) -> Result<u8> {
    let screens_asked = args.is_tui();
    let Args { pid, rates, duration, list_backends, screens, global, command } = args;
    let short_form = pid.is_some() || rates.download.is_some() || rates.upload.is_some();
    if screens.replay.is_some()
        && (short_form || duration.duration.is_some() || list_backends || command.is_some())
    {
        return Err(Error::new(
            Kind::Usage,
            "--replay shows a recording: it goes with no command and no limit",
        ));
    }
    let Some(command) = command else {
        return match pid {
            _ if list_backends && (short_form || duration.duration.is_some()) => Err(Error::new(
                Kind::Usage,
                "--list-backends limits nothing: leave --pid, the rates and --duration",
            )),
            _ if list_backends => backends::list(&global),
            Some(pid) => limit::short_form(&global, &pid, &rates, &duration),
            None if short_form || duration.duration.is_some() => {
                Err(Error::new(Kind::Usage, "which process? give --pid P, or a command (see --help)"))
            }
            None if screens_asked => tui::tui(&global, &screens),
            None => {
                output::message(&Args::command().render_help().ansi().to_string());
                output::message(
                    "The screens need a terminal, for input and output; without one there is `chadthrottle monitor`.",
                );
                Ok(Kind::Usage.exit_code())
            }
        };
    };
    if short_form || duration.duration.is_some() || list_backends {
        return Err(Error::new(
            Kind::Usage,
            "--pid and --list-backends take no command; give rates and --duration after `limit` or `run`",
        ));
    }
    match command {
        Command::Run(args) => run::run(&global, &args),
        Command::Limit(args) => limit::limit(&global, &args),
        Command::Monitor(args) => monitor::monitor(&global, &args),
        Command::Status(args) => status::status(&global, &args),
        Command::Clear(args) => clear::clear(&global, &args),
        Command::Explain(args) => explain::explain(&global, &args),
        Command::Doctor(args) => backends::doctor(&global, &args),
        Command::Selftest(args) => selftest(&global, &args),
        Command::Completions(args) => completions::script(args.shell).map(|()| 0),
        Command::Man => man::man().map(|()| 0),
        Command::Owner(args) => {
            owner::server::main(global.runtime_dir(), &resolve::site(&global)?, args.ready_fd).map(|()| 0)
        }
        Command::Janitor(args) => {
            owner::janitor::main(global.runtime_dir(), args.owner_pidfd, args.estate_fd).map(|()| 0)
        }
        Command::Traffic(args) => selftest::traffic::main(&args.args).map(|()| 0),
    }
}

/// `chadthrottle selftest`.
fn selftest(global: &Global, args: &Json) -> Result<u8> {
    let options = selftest::Options {
        json: args.json,
        runtime_dir: global.runtime_dir.clone(),
        cgroup_root: resolve::site(global)?.cgroup_root,
    };
    let held = selftest::main(&options)?;
    Ok(if held { 0 } else { Kind::Failed.exit_code() })
}

/// `--color always` or `never`, wherever it stands before a `--`.
fn color_asked_for(words: &[OsString]) -> Option<anstream::ColorChoice> {
    let words: Vec<_> =
        words.iter().map(|word| word.to_string_lossy()).take_while(|word| word != "--").collect();
    let mut values =
        words.iter().enumerate().filter_map(|(index, word)| match word.strip_prefix("--color")? {
            "" => words.get(index + 1).map(AsRef::as_ref),
            rest => rest.strip_prefix('='),
        });
    values.next_back().and_then(|value| <Color as clap::ValueEnum>::from_str(value, true).ok()).map(|color| {
        match color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        }
    })
}

/// Help and version, or what is wrong with the arguments.
fn parser_says(error: &clap::Error) -> ExitCode {
    let plain = error.render().to_string();
    if error.use_stderr() && plain.chars().any(|c| c.is_control() && c != '\n') {
        output::message(output::escape_lines(&plain).trim_end());
    } else {
        match error.print() {
            Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
                output::message(&format!("error: write to stdout: {cause}"));
                return ExitCode::from(Kind::Failed.exit_code());
            }
            _ => {}
        }
    }
    ExitCode::from(error.exit_code().clamp(0, 255) as u8)
}

/// Logs go to stderr, or to the file of the screens; where that can't be had, nowhere.
fn start_log(verbose: u8, file: Option<io::Result<File>>) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("chadthrottle={level}")));
    let log = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    match file {
        None => {
            let color = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
            log.with_writer(io::stderr).with_ansi(color).init();
        }
        Some(Ok(file)) => log.with_writer(Mutex::new(file)).with_ansi(false).init(),
        Some(Err(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_known_before_the_arguments_are() {
        let asked = |line: &str| color_asked_for(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(asked("chadthrottle --color never --help"), Some(anstream::ColorChoice::Never));
        assert_eq!(asked("chadthrottle status --color=always"), Some(anstream::ColorChoice::Always));
        assert_eq!(asked("chadthrottle run -d 1M -- ls --color never"), None);
        assert_eq!(asked("chadthrottle --color"), None);
        assert_eq!(asked("chadthrottle --colors x"), None);
    }
}
