//! An archive as the kernel unpacks it at boot (Documentation/driver-api/early-userspace/buffer-format.rst,
//! "newc"). Written here, because so device nodes need neither root nor a tool.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes entries to `out`; parents must come before their children.
pub struct Archive<W> {
    out: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY, (0, 0), &[])
    }

    /// A file that may be executed.
    pub fn program(&mut self, path: &str, contents: &[u8]) -> io::Result<()> {
        self.entry(path, PROGRAM, (0, 0), contents)
    }

    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Writes the end and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), contents: &[u8]) -> io::Result<()> {
        self.entries += 1;
        let size = u32::try_from(contents.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let name_size = path.len() as u32 + 1;
        let (inode, links) = (self.entries, 1);
        // inode mode uid gid links mtime size, device of the file, device of the node, name size, checksum
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(6 + 8 * fields.len() + name_size as usize)?;
        self.out.write_all(contents)?;
        self.pad(contents.len())
    }

    /// To the next multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_starts_at_a_multiple_of_four() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        archive.program("bin/abc", b"12345").unwrap();
        archive.device("console", 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let headers: Vec<_> =
            (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"070701")).map(|at| at % 4).collect();
        assert_eq!(headers, [0; 4]);
    }
}
