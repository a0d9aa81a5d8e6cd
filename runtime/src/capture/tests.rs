//! A capture with a scripted source, and its records read like an observer would.

use std::sync::{Arc, Mutex, MutexGuard};

use super::*;

const CAMERA: &str = r#"
[node]
id = "gate-01"
[model]
bundle = "/nowhere"
[[camera]]
id = "yard"
source = "rtsp://192.0.2.7/1"
"#;

/// A line for each record.
#[derive(Default)]
struct Lines(Mutex<Vec<String>>);

impl Lines {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().expect("not poisoned")
    }
}

impl Lines {
    fn add(&self, record: &CaptureRecord) {
        let line = match record {
            CaptureRecord::Frame {
                frame, decision, ..
            } => format!("frame {frame} {decision:?}"),
            CaptureRecord::FrameBad { frame, error, .. } => format!("bad {frame:?}: {error}"),
            CaptureRecord::FramesSuperseded { count } => format!("superseded {count}"),
            CaptureRecord::Failed { error, reopen_in } => {
                format!("failed: {error}; again: {}", reopen_in.is_some())
            }
        };
        self.lines().push(line);
    }
}

struct CaptureRig {
    capture: Capture,
    frames: handoff::Receiver<AdmittedFrame>,
    status: watch::Receiver<CameraStatus>,
    lines: Arc<Lines>,
}

fn rig(source: &str) -> CaptureRig {
    let config = CAMERA.replace("rtsp://192.0.2.7/1", source);
    let config = agent::AgentConfig::parse(&config, "egret.toml").expect("a configuration");
    let (clock, random) = (Clock::system(), Random::seeded(1));
    let (sender, frames) = handoff::latest();
    let (status, status_seen) = watch::channel(CameraStatus::opening(clock.wall()));
    let lines = Arc::new(Lines::default());
    let camera = config.cameras[0].clone();
    let seen = Arc::clone(&lines);
    let report = Box::new(move |record| seen.add(&record));
    let stop = Stop::new();
    CaptureRig {
        capture: Capture::new(camera, sender, status, stop, clock, random, report),
        frames,
        status: status_seen,
        lines,
    }
}

fn frame(image: FrameImage) -> Frame {
    Frame {
        captured_at: std::time::SystemTime::UNIX_EPOCH,
        name: None,
        image,
    }
}

fn grey(level: u8) -> Frame {
    frame(FrameImage::Rgb {
        width: 8,
        height: 8,
        data: vec![level; 8 * 8 * 3].into(),
    })
}

#[test]
fn an_admitted_frame_is_handed_over_and_the_same_again_is_skipped() {
    let mut rig = rig("rtsp://192.0.2.7/1");
    assert!(rig.capture.frame(grey(10)).is_continue());
    assert!(rig.capture.frame(grey(10)).is_continue());
    assert!(rig.capture.frame(grey(200)).is_continue());
    insta::assert_snapshot!(rig.lines.lines().join("\n"), @"
    frame 1 Admit(First)
    frame 2 Skip(Unchanged { share: 0.0 })
    frame 3 Admit(Motion { share: 1.0 })
    superseded 1
    ");
    assert_eq!(rig.status.borrow().state, CameraState::Online);
    drop(rig.frames);
    assert!(rig.capture.frame(grey(10)).is_break(), "the scene is gone");
}

#[test]
fn a_bad_frame_costs_itself_alone() {
    let mut rig = rig("rtsp://192.0.2.7/1");
    let cut_short = FrameImage::Encoded(Bytes::from_static(b"\xff\xd8\xff"));
    let too_few_bytes = FrameImage::Rgb {
        width: 8,
        height: 8,
        data: Bytes::from_static(b"short"),
    };
    for image in [cut_short, too_few_bytes] {
        assert!(rig.capture.frame(frame(image)).is_continue());
    }
    assert!(rig.capture.frame(grey(10)).is_continue());
    let lines = rig.lines.lines();
    assert!(
        lines[0].starts_with("bad Some(1)") && lines[1].starts_with("bad Some(2)"),
        "{lines:?}"
    );
    assert!(lines[2].starts_with("frame 3"), "{lines:?}");
}

#[test]
fn a_decoder_that_panics_costs_its_frame_alone() {
    let mut rig = rig("rtsp://192.0.2.7/1");
    rig.capture.decode = |_| panic!("index {} out of range", 7);
    assert!(rig.capture.frame(grey(10)).is_continue());
    rig.capture.decode = decoded;
    assert!(rig.capture.frame(grey(10)).is_continue());
    insta::assert_snapshot!(rig.lines.lines().join("\n"), @"
    bad Some(1): the decoder panicked: index 7 out of range; please report it, with the image
    frame 2 Admit(First)
    ");
}

#[test]
fn a_source_that_fails_is_opened_again_and_a_finite_one_is_given_up() {
    let gone = || CaptureError::CannotOpen {
        camera: "double".into(),
        error: io::ErrorKind::NotFound.into(),
    };
    let mut live = rig("rtsp://192.0.2.7/1");
    let waits: Vec<_> = (0..8).map(|_| live.capture.failed(&gone())).collect();
    let wait = |after: &AfterFailure| match after {
        AfterFailure::Reopen(wait) => *wait,
        AfterFailure::GiveUp => panic!("given up"),
    };
    assert!(
        wait(&waits[0]) <= REOPEN.0 && wait(&waits[7]) > REOPEN.0 * 8,
        "{waits:?}"
    );
    assert!(live.capture.frame(grey(1)).is_continue());
    let after = live.capture.failed(&gone());
    assert!(
        wait(&after) <= REOPEN.0,
        "a frame was seen, so the backoff starts over: {after:?}"
    );
    assert_eq!(live.status.borrow().losses, 1);

    let mut finite = rig("dir:///frames");
    assert_eq!(finite.capture.failed(&gone()), AfterFailure::GiveUp);
    assert_eq!(finite.status.borrow().state, CameraState::Offline);
}

/// Delivers what a test wants, in order, and then ends.
struct Source(Vec<Result<Frame, CaptureError>>);

impl Camera for Source {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        match self.0.is_empty() {
            true => Ok(None),
            false => self.0.remove(0).map(Some),
        }
    }

    fn superseded(&self) -> u64 {
        3
    }
}

#[test]
fn a_source_runs_to_its_end() {
    fn open(_: &agent::Camera, _: &Stop) -> Result<Box<dyn Camera>, CaptureError> {
        let unreadable = CaptureError::Unreadable {
            path: "b.jpg".into(),
            error: io::ErrorKind::PermissionDenied.into(),
        };
        Ok(Box::new(Source(vec![
            Ok(grey(1)),
            Err(unreadable),
            Ok(grey(250)),
        ])))
    }
    let CaptureRig {
        capture,
        frames: _frames,
        status,
        lines,
    } = rig("dir:///frames");
    capture.run(open);
    insta::assert_snapshot!(lines.lines().join("\n"), @"
    superseded 3
    frame 1 Admit(First)
    bad None: b.jpg: permission denied; this frame is skipped
    frame 2 Admit(Motion { share: 1.0 })
    superseded 1
    ");
    assert_eq!(status.borrow().state, CameraState::Ended);
    assert_eq!(status.borrow().reason, "end of source");
}
