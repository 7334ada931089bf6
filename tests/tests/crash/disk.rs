//! The spool's disk is full, or read-only, while a gateway records, dies and comes back. It is a file system of its own, in
//! a namespace of mounts of its own: that takes root, or a kernel that lets users have one.

use super::*;

use e2e::Engine;

const MEBIBYTES: u64 = 32;

/// A small disk that only processes in its namespace see. It goes with them.
struct Disk {
    holder: ChildProcess,
    /// Which namespaces a process enters to see it.
    enter: &'static [&'static str],
    at: PathBuf,
}

impl Disk {
    /// At a folder that is there. None where nobody may mount.
    async fn mount(at: &Path) -> Option<Self> {
        let ways: [(&[&str], &[&str]); 2] =
            [(&["-m"], &["-m"]), (&["-m", "-U", "-r"], &["-m", "-U", "--preserve-credentials"])];
        let mount = format!("mount -t tmpfs -o size={MEBIBYTES}m none {}", at.display());
        let unshare = |share: &[&str], script: &str| {
            let mut command = Command::new("unshare");
            command.args(share).args(["--propagation", "private", "sh", "-c", script]);
            command
        };
        let may = |share: &[&str]| unshare(share, &mount).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        let Some((share, enter)) = ways.into_iter().find(|(share, _)| may(share)) else {
            eprintln!("SKIPPED: neither root nor a user namespace may mount a disk here");
            return None;
        };
        let holder = ChildProcess::start(&mut unshare(share, &format!("{mount} && echo mounted && exec sleep 7200")));
        holder.line("mounted", PATIENCE).await;
        Some(Self { holder, enter, at: at.to_owned() })
    }

    /// The same command, where the disk is seen.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg("-t").arg(self.holder.pid().to_string()).args(self.enter);
        inside.arg("--").arg(command.get_program()).args(command.get_args());
        inside
    }

    fn run(&self, script: &str) {
        let script = script.replace("DISK", &self.at.display().to_string());
        let mut command = Command::new("sh");
        let status = self.inside(command.args(["-c", &script])).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Something else takes all the room there is.
    Full,
    /// Nothing new can be made or removed. What is open stays so, as on a disk that the kernel has set read-only.
    ReadOnly,
}

impl Fault {
    fn begin(self, disk: &Disk) {
        disk.run(match self {
            Self::Full => "dd if=/dev/zero of=DISK/filler bs=16k; true",
            // Made elsewhere and moved there: nothing is opened for writing in between.
            Self::ReadOnly => {
                "mkdir -p DISK.ro && mount --bind DISK DISK.ro && mount -o remount,bind,ro DISK.ro \
                 && mount --move DISK.ro DISK"
            }
        });
    }

    fn end(self, disk: &Disk) {
        disk.run(match self {
            Self::Full => "rm DISK/filler",
            Self::ReadOnly => "umount -l DISK",
        });
    }
}

/// Waits until a gateway has printed so many lines of each of these kinds behind its first ones.
async fn says(gateway: &ChildProcess, from: usize, kinds: [&str; 2], more: usize) {
    testkit::eventually(PATIENCE, async || {
        let lines = gateway.lines();
        let count = |kind: &str| lines[from..].iter().filter(|line| line.starts_with(kind)).count();
        let found = kinds.map(count);
        if found.iter().all(|found| *found >= more) { Ok(()) } else { Err((kinds, found)) }
    })
    .await;
}

const TAKEN: [&str; 2] = ["usage ", "audit "];
const UNTAKEN: [&str; 2] = ["untaken usage", "untaken audit"];

async fn drill(fault: Fault, lives: u64) {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let spool = sandbox.folder.path().join("spool");
    std::fs::create_dir(&spool).unwrap();
    let Some(disk) = Disk::mount(&spool).await else { return };
    let (audit, usage) = (sandbox.audit.address().to_owned(), sandbox.usage.address().to_owned());
    let gateway = |mode: &str| disk.inside(&recorder(&spool, &audit, &usage, mode));
    let mut recorded = Recorded::default();
    for _ in 0..lives {
        let mut living = ChildProcess::start(&mut gateway("waits"));
        says(&living, 0, TAKEN, 20).await;
        fault.begin(&disk);
        if fault == Fault::Full {
            // The room of what is acknowledged is used again.
            says(&living, living.lines().len(), TAKEN, 300).await;
        }
        sandbox.usage.kill();
        sandbox.audit.kill();
        // It fails closed, and says so, as long as that lasts.
        says(&living, living.lines().len(), UNTAKEN, 3).await;
        if random(2) == 0 {
            recorded.take(living).await;
            living = ChildProcess::start(&mut gateway("waits"));
            match fault {
                // What is in the spool needs no room to be delivered.
                Fault::Full => says(&living, 0, UNTAKEN, 3).await,
                Fault::ReadOnly => {
                    let why = living.line("no SDK: ", PATIENCE).await;
                    assert!(why.contains("spool") && why.contains("Read-only"), "{why}");
                }
            }
        }
        let mut from = living.lines().len();
        if fault == Fault::Full && random(2) == 0 {
            sandbox.usage.start_again().await;
            sandbox.audit.start_again().await;
            says(&living, from, TAKEN, 20).await;
            fault.end(&disk);
        } else {
            fault.end(&disk);
            if living.lines().iter().any(|line| line.starts_with("no SDK")) {
                living = ChildProcess::start(&mut gateway("waits"));
                from = 0;
            }
            // By itself, once the disk is well; until it has filled that up.
            says(&living, from, TAKEN, 20).await;
            sandbox.usage.start_again().await;
            sandbox.audit.start_again().await;
        }
        says(&living, living.lines().len(), TAKEN, 20).await;
        recorded.take(living).await;
        // The next life has all of the disk.
        deliver_the_rest(&mut gateway("drain")).await;
    }
    recorded.assert_kept(&sandbox, &spool).await;
}

#[tokio::test]
async fn what_was_recorded_around_a_full_disk_is_stored_once_and_no_number_is_missing() {
    tokio::time::timeout(Duration::from_secs(3_000), drill(Fault::Full, rounds(2, 60))).await.unwrap();
}

#[tokio::test]
async fn what_was_recorded_around_a_read_only_disk_is_stored_once_and_no_number_is_missing() {
    tokio::time::timeout(Duration::from_secs(3_000), drill(Fault::ReadOnly, rounds(2, 60))).await.unwrap();
}
