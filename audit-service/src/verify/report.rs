//! What was found, and what it comes to.

use std::fmt;

/// Findings that are kept with their words; of more, the number.
const TOLD: usize = 100;

/// What came of it, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Verdict {
    /// Every entry is as it was signed, and none of those that were signed is missing.
    #[default]
    Valid,
    /// Nothing contradicts it, but no key was pinned, or entries, or all there is, are under no checkpoint by one.
    NotEstablished,
    /// Entries are missing.
    Incomplete,
    /// Something is not as it was signed.
    Altered,
}

impl Verdict {
    /// The exit status of a command.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Valid => 0,
            Self::Altered => 1,
            Self::Incomplete => 2,
            Self::NotEstablished => 3,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::NotEstablished => "not established",
            Self::Incomplete => "incomplete",
            Self::Altered => "altered",
        })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What came of it.
    pub verdict: Verdict,
    /// Sentences, the most important at the end of each log.
    pub findings: Vec<String>,
    /// Findings against it that are among them.
    told: usize,
    left_out: u64,
}

impl Report {
    /// Something that speaks against it.
    pub(super) fn found(&mut self, verdict: Verdict, what: String) {
        self.verdict = self.verdict.max(verdict);
        if self.told < TOLD {
            self.told += 1;
            self.findings.push(what);
        } else {
            self.left_out += 1;
        }
    }

    /// Something that does not.
    pub(super) fn say(&mut self, what: &str) {
        self.findings.push(what.to_owned());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        if self.left_out > 0 {
            writeln!(f, "and {} findings more", self.left_out)?;
        }
        write!(f, "{}", self.verdict)
    }
}
