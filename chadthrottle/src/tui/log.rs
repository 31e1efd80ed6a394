//! Logs go to a file while the terminal shows the screens.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    path::PathBuf,
};

/// Above this size the file begins anew.
const LARGEST: u64 = 1 << 20;

/// Opens `tui.log` in our folder below the XDG state folder.
pub fn open() -> io::Result<File> {
    let folder = folder(|name| std::env::var_os(name))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "neither XDG_STATE_HOME nor HOME is set"))?;
    fs::create_dir_all(&folder)?;
    let path = folder.join("tui.log");
    let is_large = fs::metadata(&path).is_ok_and(|found| found.len() > LARGEST);
    let mut options = OpenOptions::new();
    if is_large { options.write(true).truncate(true) } else { options.append(true) }.create(true).open(path)
}

/// What the specification says: an absolute path in XDG_STATE_HOME, else below HOME.
fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")))?;
    Some(state.join("chadthrottle"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_is() {
        for (variables, expected) in [
            (vec![("XDG_STATE_HOME", "/s"), ("HOME", "/h")], Some("/s/chadthrottle")),
            (vec![("XDG_STATE_HOME", "relative"), ("HOME", "/h")], Some("/h/.local/state/chadthrottle")),
            (vec![], None),
        ] {
            let of =
                |name: &str| variables.iter().find(|(own, _)| *own == name).map(|(_, value)| value.into());
            assert_eq!(folder(of), expected.map(PathBuf::from));
        }
    }
}
