//! `egret demo` as a newcomer runs it: its summary, how it ends, and that it leaves no process
//! behind.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Lines, Read};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Memory limit of the demo's own process, without broker and worker, in bytes.
const RSS_MAX: u64 = 200 << 20;

/// Timeout for the end of a killed process.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);

/// A running demo in a process group of its own, as a shell starts it. Killed when dropped.
struct Demo {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    /// The lines read so far.
    lines: Vec<String>,
    _temporary: TempDir,
}

/// How a demo ended.
struct Ended {
    code: Option<i32>,
    summary: Value,
}

impl Demo {
    fn start(arguments: &[&str]) -> Demo {
        let temporary = tempfile::tempdir().unwrap();
        let mut command = Command::new(tests::program("egret"));
        command
            .args(["demo", "--json"])
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .process_group(0);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Demo {
            child,
            log,
            lines: Vec::new(),
            _temporary: temporary,
        }
    }

    /// The next line of its live view; `None` when it has ended.
    fn next_line(&mut self) -> Option<&str> {
        let line = self.log.next()?.unwrap();
        self.lines.push(line);
        self.lines.last().map(String::as_str)
    }

    /// Waits for `count` more lines with `word`.
    fn wait_for(&mut self, word: &str, count: usize) {
        for _ in 0..count {
            while !self
                .next_line()
                .unwrap_or_else(|| panic!("it ended without {word:?}"))
                .contains(word)
            {}
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The processes that it started.
    fn children(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
        pids.filter(|pid| stat(*pid).is_some_and(|(_, parent)| parent == self.pid()))
            .collect()
    }

    /// Reads until it has ended, and parses its summary.
    fn end(mut self) -> Ended {
        while self.next_line().is_some() {}
        let mut json = String::new();
        self.child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut json)
            .unwrap();
        let code = self.child.wait().unwrap().code();
        let summary = json
            .strip_suffix('\n')
            .filter(|line| !line.contains('\n'))
            .and_then(|line| serde_json::from_str(line).ok());
        Ended {
            code,
            summary: summary
                .unwrap_or_else(|| panic!("one object on one line: {json:?}, {:?}", self.lines)),
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Either fails only when it has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    fn count(&self, field: &str) -> u64 {
        self.summary[field]
            .as_u64()
            .unwrap_or_else(|| panic!("{field}: {}", self.summary))
    }

    fn number(&self, part: &str, field: &str) -> f64 {
        self.summary[part][field]
            .as_f64()
            .unwrap_or_else(|| panic!("{part}.{field}: {}", self.summary))
    }

    fn reasons(&self) -> Vec<(&str, u64)> {
        let reasons = self.summary["reasons"].as_object().unwrap();
        reasons
            .iter()
            .map(|(code, count)| (code.as_str(), count.as_u64().unwrap()))
            .collect()
    }

    /// Holds however early it ends: no event is lost, and every answer is counted once.
    fn adds_up(&self) {
        let summary = &self.summary;
        assert_eq!(
            self.count("events_received"),
            self.count("events_published"),
            "{summary}"
        );
        assert_eq!(
            self.count("answers_local") + self.count("answers_escalated"),
            self.count("answers"),
            "{summary}"
        );
        assert_eq!(
            self.reasons().iter().map(|(_, count)| count).sum::<u64>(),
            self.count("answers"),
            "{summary}"
        );
        assert!(
            self.count("frames_skipped") <= self.count("frames")
                && self.number("accuracy", "n") <= self.count("answers") as f64,
            "{summary}"
        );
    }
}

fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// A process's state and parent, while there is one.
fn stat(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind its name, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// The most memory that a process has had so far, in bytes.
fn peak_rss(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

fn frames_of_the_demo() -> u64 {
    ["lobby", "carpark"]
        .iter()
        .map(|camera| {
            tests::demo("frames")
                .join(camera)
                .read_dir()
                .unwrap()
                .count() as u64
        })
        .sum()
}

#[test]
fn the_demo_shows_routing_at_work() {
    // The demo finds another port when the usual one is taken.
    let usual = TcpListener::bind("127.0.0.1:1883");
    let mut demo = Demo::start(&[]);
    let (mut broker, mut config, mut peak) = (String::new(), String::new(), 0);
    let pid = demo.pid();
    while let Some(line) = demo.next_line() {
        if let Some(url) = line
            .split_whitespace()
            .find(|word| word.starts_with("mqtt://"))
        {
            broker = url.to_owned();
        }
        if let Some(path) = line
            .split_whitespace()
            .find(|word| word.ends_with("egret.toml"))
            .filter(|_| config.is_empty())
        {
            config = path.to_owned();
            let check = Command::new(tests::program("egret"))
                .args(["run", "--check", "--config", path])
                .output()
                .unwrap();
            assert!(check.status.success(), "{check:?}");
        }
        peak = peak_rss(pid).unwrap_or(peak).max(peak);
    }
    assert!(
        Path::new(&config).is_file(),
        "the configuration is kept: {config:?}"
    );
    assert!(broker.starts_with("mqtt://127.0.0.1:"), "{broker}");
    // A process that held the port before this test may have ended since.
    assert!(usual.is_err() || !broker.ends_with(":1883"), "{broker}");

    let ended = demo.end();
    let summary = &ended.summary;
    assert_eq!(ended.code, Some(0));
    ended.adds_up();
    assert_eq!(ended.count("frames"), frames_of_the_demo());
    // Each camera has two questions.
    assert_eq!(
        2 * (ended.count("frames") - ended.count("frames_skipped")),
        ended.count("answers"),
        "{summary}"
    );
    assert!(ended.number("accuracy", "n") >= 30.0, "{summary}");
    assert!(
        ended.count("answers_local") > 0 && ended.count("answers_escalated") > 0,
        "{summary}"
    );
    let reasons: BTreeSet<_> = ended.reasons().iter().map(|(code, _)| *code).collect();
    assert!(
        reasons.is_superset(&BTreeSet::from(["CONFIDENT", "LOW_CONFIDENCE"])),
        "{summary}"
    );
    assert!(
        ended.number("accuracy", "routed") > ended.number("accuracy", "always_local"),
        "{summary}"
    );
    assert!(
        ended.number("cost", "routed") < ended.number("cost", "always_pool"),
        "{summary}"
    );
    assert!(
        ended.count("updates") > 0 && ended.count("bytes_up") > 0,
        "{summary}"
    );
    assert!((1..RSS_MAX).contains(&peak), "{peak}: {summary}");
    // Its own number is the system's, but for the pages allocated between the two readings.
    assert!(
        ended.count("peak_rss_bytes").abs_diff(peak) < peak / 10,
        "{peak}: {summary}"
    );
}

#[test]
fn a_demo_that_is_cut_short_prints_its_summary() {
    let mut demo = Demo::start(&["--for", "6s"]);
    demo.wait_for("configuration", 1);
    let ended = demo.end();
    let summary = &ended.summary;
    assert_eq!(ended.code, Some(0));
    ended.adds_up();
    assert!(
        (1..frames_of_the_demo()).contains(&ended.count("frames")),
        "{summary}"
    );
    assert_eq!(
        keys(summary),
        BTreeSet::from([
            "accuracy",
            "answers",
            "answers_escalated",
            "answers_local",
            "bytes_up",
            "cost",
            "events_published",
            "events_received",
            "frames",
            "frames_skipped",
            "latency_ms",
            "peak_rss_bytes",
            "reasons",
            "updates",
        ])
    );
    assert_eq!(
        keys(&summary["cost"]),
        BTreeSet::from(["always_local", "always_pool", "routed"])
    );
    assert_eq!(
        keys(&summary["accuracy"]),
        BTreeSet::from(["always_local", "always_pool", "n", "routed"])
    );
    assert_eq!(
        keys(&summary["latency_ms"]),
        BTreeSet::from(["escalated_p50", "escalated_p95", "local_p50", "local_p95"])
    );
}

/// A terminal sends Ctrl-C to every process of the group in its foreground.
#[test]
fn ctrl_c_at_a_terminal_loses_no_event() {
    let mut demo = Demo::start(&[]);
    demo.wait_for("asking the pool", 4);
    let sent = Command::new("kill")
        .args(["-INT", "--", &format!("-{}", demo.pid())])
        .status()
        .unwrap();
    assert!(sent.success());
    let ended = demo.end();
    assert_eq!(ended.code, Some(130));
    ended.adds_up();
    assert!(
        ended.count("events_published") > 0 && ended.count("frames") < frames_of_the_demo(),
        "{}",
        ended.summary
    );
}

#[test]
fn a_killed_demo_leaves_no_process_behind() {
    let mut demo = Demo::start(&[]);
    demo.wait_for("asking the pool", 1);
    let children = demo.children();
    assert_eq!(children.len(), 2, "a broker and a worker");
    demo.child.kill().unwrap();
    demo.child.wait().unwrap();
    let killed = Instant::now();
    // A zombie has ended, too.
    while let Some(left) = children
        .iter()
        .find(|pid| stat(**pid).is_some_and(|(state, _)| state != 'Z'))
    {
        assert!(
            killed.elapsed() < KILL_TIMEOUT,
            "process {left} outlives the demo"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
