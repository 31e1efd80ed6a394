//! The owner's life: started on demand, shared by clients, gone after the last limit, however anybody
//! dies. The backend is made up; the processes, sockets and signals are real. This program is its own
//! owner, janitor and client, as `chadthrottle` is.

mod cases;
mod fake;
mod house;

use std::{env, ffi::OsString, path::PathBuf, process::ExitCode};

use chadthrottle::{
    Result,
    backend::Site,
    owner::{janitor, server},
};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let played = match arguments.get(1).and_then(|role| role.to_str()) {
        Some("owner") => play_owner(&arguments),
        Some("janitor") => janitor::main(
            &option(&arguments, "--runtime-dir").unwrap(),
            number(&arguments, "--owner-pidfd"),
            None,
        ),
        Some("client") => house::play_client(arguments[2].as_ref()),
        _ => {
            let conclusion = libtest_mimic::run(&Arguments::from_args(), trials());
            house::demolish();
            return conclusion.exit_code();
        }
    };
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.kind.exit_code())
        }
    }
}

fn trials() -> Vec<Trial> {
    cases::ALL
        .iter()
        .map(|(name, case)| {
            Trial::test(*name, move || {
                case();
                Ok(())
            })
        })
        .collect()
}

fn play_owner(arguments: &[OsString]) -> Result<()> {
    let dir = option(arguments, "--runtime-dir").unwrap();
    let site = Site { cgroup_root: option(arguments, "--cgroup-root") };
    server::main_with(&dir, &site, Some(number(arguments, "--ready-fd")), fake::DRIVERS)
}

fn option(arguments: &[OsString], name: &str) -> Option<PathBuf> {
    let at = arguments.iter().position(|argument| argument == name)?;
    Some(arguments[at + 1].clone().into())
}

fn number(arguments: &[OsString], name: &str) -> i32 {
    option(arguments, name).unwrap().to_str().unwrap().parse().unwrap()
}
