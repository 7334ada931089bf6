//! Ends a process when the test that started it dies without running its destructors (kill -9, abort, Ctrl-C).
//!
//! `PR_SET_PDEATHSIG` would need `unsafe`, and follows the thread rather than the process. Instead a shell reads a
//! pipe whose other end only the test process holds: the kernel closes that end however the process ends.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Each line names the process to end when the pipe closes; an empty line means none. The folder is removed at the
/// end in any case.
const SCRIPT: &str = r#"
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -s "$1" "$pid" 2>/dev/null
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 50 ]; do
        sleep 0.1
        tries=$((tries + 1))
    done
    kill -s KILL "$pid" 2>/dev/null
fi
rm -rf -- "$2"
"#;

#[derive(Debug)]
pub(crate) struct Guard {
    shell: Child,
}

impl Guard {
    /// `signal` is sent first (`QUIT`, `KILL`); what still lives after five seconds is killed.
    pub(crate) fn new(signal: &str, folder: &Path) -> Self {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "guard", signal])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal goes to the whole group: the guard must outlive it.
            .process_group(0)
            .spawn()
            .expect("start sh as the guard of a child process");
        Self { shell }
    }

    pub(crate) fn watch(&mut self, pid: u32) {
        self.tell(&pid.to_string());
    }

    /// To be called before the process is waited for: afterwards its id may be another's.
    pub(crate) fn release(&mut self) {
        self.tell("");
    }

    fn tell(&mut self, line: &str) {
        if let Some(pipe) = self.shell.stdin.as_mut() {
            // A guard that is gone guards nothing; the process itself is still ended by its owner's drop.
            let _ = writeln!(pipe, "{line}");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.release();
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
