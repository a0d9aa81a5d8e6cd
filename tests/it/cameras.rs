//! Cameras over real files, a real `ffmpeg` and a real RTSP server.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use devices::camera::{self, Camera, CaptureError};
use devices::{Frame, FrameImage, Stop};
use firmware_config::agent::Source;
use tests::rtsp::RtspServer;

/// Long enough for a busy machine to open a stream; a stalled camera here never recovers.
const STALL_AFTER: Duration = Duration::from_secs(8);
const PERIOD: Duration = Duration::from_millis(50);

fn open(source: Source, period: Duration, stop: &Stop) -> Result<Box<dyn Camera>, CaptureError> {
    camera::open(&source, period, STALL_AFTER, stop)
}

fn refused(source: Source) -> CaptureError {
    open(source, PERIOD, &Stop::new())
        .err()
        .expect("the source is refused")
}

fn read_all(camera: &mut dyn Camera) -> Result<Vec<Frame>, CaptureError> {
    std::iter::from_fn(|| camera.next_frame().transpose()).collect()
}

/// Reads until the camera fails, and returns the error.
fn read_to_error(camera: &mut dyn Camera) -> CaptureError {
    loop {
        match camera.next_frame() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a live source has no end"),
            Err(error) => return error,
        }
    }
}

fn size(frame: &Frame) -> (u32, u32) {
    match &frame.image {
        FrameImage::Rgb {
            width,
            height,
            data,
        } => {
            assert_eq!(
                data.len() as u64,
                u64::from(*width) * u64::from(*height) * 3
            );
            (*width, *height)
        }
        FrameImage::Encoded(_) => panic!("ffmpeg decodes the frames of files and streams"),
    }
}

/// The first second of a real clip.
fn clip(folder: &Path) -> std::path::PathBuf {
    let clip = folder.join("a clip.mp4");
    let mut cut = Command::new("ffmpeg");
    cut.args(["-nostdin", "-loglevel", "error", "-i"])
        .arg(tests::data("bottle-detection.mp4"))
        .args(["-t", "1", "-c", "copy"])
        .arg(&clip);
    assert!(cut.status().expect("ffmpeg is installed").success());
    clip
}

/// Whether any process has `argument` in its command line.
fn is_running(argument: &str) -> bool {
    fs::read_dir("/proc").unwrap().flatten().any(|process| {
        fs::read(process.path().join("cmdline")).is_ok_and(|line| {
            line.windows(argument.len())
                .any(|part| part == argument.as_bytes())
        })
    })
}

#[test]
fn a_folder_is_read_once_in_name_order_and_not_faster_than_its_rate() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "000300.jpg",
        "000100.JPG",
        "000200.png",
        "notes.txt",
        "000400",
    ] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let started = Instant::now();
    let mut camera = open(Source::Folder(folder.path().into()), PERIOD, &Stop::new()).unwrap();
    let frames = read_all(&mut *camera).unwrap();
    assert!(
        started.elapsed() >= PERIOD * 2,
        "three frames take at least two periods"
    );
    let names: Vec<_> = frames
        .iter()
        .map(|frame| frame.name.as_deref().unwrap())
        .collect();
    assert_eq!(names, ["000100.JPG", "000200.png", "000300.jpg"]);
    assert!(matches!(&frames[0].image, FrameImage::Encoded(bytes) if bytes == "000100.JPG"));
    assert!(frames.is_sorted_by_key(|frame| frame.captured_at));
}

#[test]
fn one_image_that_cannot_be_read_does_not_end_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("a.jpg")).unwrap();
    fs::write(folder.path().join("b.jpg"), "b").unwrap();
    let mut camera = open(Source::Folder(folder.path().into()), PERIOD, &Stop::new()).unwrap();
    let error = camera.next_frame().unwrap_err();
    assert!(
        error.costs_one_frame() && error.to_string().contains("a.jpg"),
        "{error}"
    );
    assert_eq!(
        camera.next_frame().unwrap().unwrap().name.as_deref(),
        Some("b.jpg")
    );
    assert!(camera.next_frame().unwrap().is_none());
}

#[test]
fn a_missing_source_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = refused(Source::Folder(empty.path().into())).to_string();
    assert!(
        error.contains(empty.path().to_str().unwrap()) && error.contains("no image file"),
        "{error}"
    );
    for source in [
        Source::Folder("/no/such/folder".into()),
        Source::File("/no/such/clip.mp4".into()),
    ] {
        let error = refused(source).to_string();
        assert!(
            error.contains("://") && error.contains("/no/such/") && error.contains("No such file"),
            "{error}"
        );
    }
}

#[test]
fn a_clip_is_decoded_to_its_end_and_no_frame_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let mut camera = open(
        Source::File(clip(folder.path())),
        Duration::from_millis(100),
        &Stop::new(),
    )
    .unwrap();
    let frames = read_all(&mut *camera).unwrap();
    // One second at ten a second; the cut decides how many frames come at the end.
    assert!((10..=12).contains(&frames.len()), "{} frames", frames.len());
    assert!(frames.iter().all(|frame| size(frame) == (640, 360)));
    assert_eq!(camera.superseded(), 0);
}

#[test]
fn a_dropped_camera_leaves_no_decoder_behind() {
    let folder = tempfile::tempdir().unwrap();
    let clip = clip(folder.path());
    let mut camera = open(Source::File(clip.clone()), PERIOD, &Stop::new()).unwrap();
    size(&camera.next_frame().unwrap().unwrap());
    assert!(
        is_running(clip.to_str().unwrap()),
        "its decoder blocks on the pipe"
    );
    drop(camera);
    assert!(!is_running(clip.to_str().unwrap()));
}

#[test]
fn a_file_that_is_no_video_is_reported_with_ffmpegs_stderr() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = folder.path().join("garbage.mp4");
    fs::write(&garbage, "this is no video").unwrap();
    let error = read_to_error(&mut *open(Source::File(garbage), PERIOD, &Stop::new()).unwrap());
    assert!(
        matches!(&error, CaptureError::Exited { stderr, .. } if stderr.contains("Invalid data")),
        "{error}"
    );
    assert!(
        error.to_string().contains("garbage.mp4") && !error.costs_one_frame(),
        "{error}"
    );
}

#[test]
fn rtsp_hands_out_the_newest_frame_and_counts_the_others() {
    let server = RtspServer::with_password("me", "secret");
    let mut camera = open(Source::Rtsp(server.url("me:secret@")), PERIOD, &Stop::new()).unwrap();
    let first = camera.next_frame().unwrap().unwrap();
    assert_eq!(size(&first), (320, 240));
    while camera.superseded() == 0 {
        thread::yield_now();
    }
    let newest = camera.next_frame().unwrap().unwrap();
    assert!(newest.captured_at > first.captured_at);
}

#[test]
fn a_camera_that_refuses_the_login_is_named_without_the_password() {
    let server = RtspServer::with_password("me", "secret");
    let error = read_to_error(
        &mut *open(
            Source::Rtsp(server.url("me:wrong-one@")),
            PERIOD,
            &Stop::new(),
        )
        .unwrap(),
    )
    .to_string();
    assert!(
        error.contains("401")
            && error.contains("rtsp://***@127.0.0.1")
            && !error.contains("wrong-one"),
        "{error}"
    );
}

#[test]
fn a_camera_that_vanishes_is_named() {
    let mut server = RtspServer::start();
    let url = server.url("");
    let mut camera = open(Source::Rtsp(url.clone()), PERIOD, &Stop::new()).unwrap();
    camera.next_frame().unwrap().unwrap();
    server.vanish();
    let error = read_to_error(&mut *camera);
    assert!(
        matches!(error, CaptureError::Exited { .. }) && error.to_string().starts_with(&url),
        "{error}"
    );
}

#[test]
fn a_camera_that_stalls_is_named() {
    let server = RtspServer::start();
    let url = server.url("");
    let mut camera = open(Source::Rtsp(url.clone()), PERIOD, &Stop::new()).unwrap();
    camera.next_frame().unwrap().unwrap();
    server.stall();
    let error = read_to_error(&mut *camera);
    assert!(
        matches!(
            error,
            CaptureError::Stalled {
                limit: STALL_AFTER,
                ..
            }
        ) && error.to_string().starts_with(&url),
        "{error}"
    );
    assert!(!is_running(&url));
}

#[test]
fn a_blocked_camera_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.jpg", "b.jpg"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let server = RtspServer::start();
    for source in [
        Source::Folder(folder.path().into()),
        Source::File(clip(folder.path())),
        Source::Rtsp(server.url("")),
    ] {
        let (stop, day) = (Stop::new(), Duration::from_secs(86_400));
        let mut camera = camera::open(&source, day, day, &stop).unwrap();
        camera.next_frame().unwrap().unwrap();
        let blocked = thread::spawn(move || camera.next_frame().map(drop));
        stop.stop();
        assert!(
            matches!(blocked.join().unwrap(), Err(CaptureError::Stopped)),
            "{source}"
        );
    }
}
