//! Lines out of a stream of bytes.

/// Bytes that have arrived and are not yet a line.
#[derive(Debug)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Up to here there is no line's end.
    searched: usize,
    longest: usize,
}

impl Lines {
    /// Takes lines of up to `longest` bytes.
    pub fn new(longest: usize) -> Self {
        Self { bytes: Vec::new(), searched: 0, longest }
    }

    /// Takes in what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let end = self.end()?;
        let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
        line.pop();
        self.searched = 0;
        Some(line)
    }

    /// Whether [`Lines::take`] would give a line.
    pub fn has_line(&mut self) -> bool {
        self.end().is_some()
    }

    /// Whether a line is longer than is allowed.
    pub fn too_long(&mut self) -> bool {
        self.end().unwrap_or(self.bytes.len()) > self.longest
    }

    fn end(&mut self) -> Option<usize> {
        let found = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n');
        match found {
            Some(offset) => {
                self.searched += offset;
                Some(self.searched)
            }
            None => {
                self.searched = self.bytes.len();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_as_they_went_in_whatever_the_pieces() {
        let text = b"one\n\ntwo and more\nthe rest";
        for piece in 1..text.len() {
            let mut lines = Lines::new(100);
            let mut taken = Vec::new();
            for part in text.chunks(piece) {
                lines.push(part);
                while lines.has_line() {
                    taken.push(String::from_utf8(lines.take().unwrap()).unwrap());
                }
            }
            assert_eq!(taken, ["one", "", "two and more"]);
            assert_eq!(lines.take(), None);
        }
    }

    #[test]
    fn a_long_line_is_noticed_with_and_without_its_end() {
        let mut lines = Lines::new(4);
        lines.push(b"1234");
        assert!(!lines.too_long());
        lines.push(b"5");
        assert!(lines.too_long());
        lines.push(b"\n");
        assert!(lines.too_long());
    }
}
