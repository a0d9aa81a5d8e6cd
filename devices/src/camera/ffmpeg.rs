//! Video files and RTSP, decoded by an `ffmpeg` child process.
//!
//! The child writes pictures to a pipe; one thread reads them into a [`Slot`], another keeps the end of its stderr. Dropping the
//! camera kills and reaps the child and joins both. If the agent itself is killed the pipe breaks, and the child ends at its next
//! picture, or when its own network timeout has passed. It runs in a process group of its own: Ctrl-C is for the agent to act on.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use firmware_config::agent::Source;
use firmware_config::redact;

use super::ppm::{Picture, Pictures, PpmError};
use super::schedule::Schedule;
use super::slot::{Arrived, Slot, WhenFull};
use super::{Camera, CaptureError};
use crate::{Frame, FrameImage, Stop};

/// Longest time until a thrown [`Stop`] is noticed.
const POLL: Duration = Duration::from_millis(50);
/// Bytes of stderr that are kept.
const STDERR_MAX: usize = 2 << 10;
/// A live stream is decoded at least this often, so that a stall shows long before a slow rate would ask.
const LIVE_PERIOD_MAX: Duration = Duration::from_secs(1);
/// Time a child has to exit after it closed its output.
const EXIT_MAX: Duration = Duration::from_secs(2);
/// The network timeout given to the child is never shorter: `stall-after` is what finds a stalled camera.
const NETWORK_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// A decoder and what it has decoded.
pub(super) struct Ffmpeg {
    /// The source without user and password, for errors.
    camera: String,
    live: bool,
    stall_after: Duration,
    schedule: Schedule,
    number: u64,
    /// User information of the source's URL, hidden wherever ffmpeg repeats it.
    secret: Option<String>,
    stop: Stop,
    slot: Arc<Slot>,
    child: Child,
    pictures: Option<JoinHandle<()>>,
    stderr: Option<JoinHandle<String>>,
}

impl Ffmpeg {
    /// Starts `program` on a video file or an RTSP stream.
    pub(super) fn open(program: &str, source: &Source, period: Duration, stall_after: Duration, stop: &Stop) -> Result<Self, CaptureError> {
        let camera = source.to_string();
        if let Source::File(path) = source {
            // ffmpeg would say so too, but only after it was started.
            std::fs::File::open(path).map_err(|error| CaptureError::NotThere { camera: camera.clone(), error })?;
        }
        let live = matches!(source, Source::Rtsp(_));
        let spawned = Command::new(program)
            .args(arguments(source, if live { period.min(LIVE_PERIOD_MAX) } else { period }, stall_after))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut child = spawned.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CaptureError::NoFfmpeg { camera: camera.clone(), program: program.to_owned() },
            _ => CaptureError::Spawn { camera: camera.clone(), error },
        })?;
        let (stdout, stderr) = (child.stdout.take().expect("stdout is piped"), child.stderr.take().expect("stderr is piped"));
        let slot = Arc::new(Slot::new());
        let when_full = if live { WhenFull::Supersede } else { WhenFull::Wait };
        let pictures = thread::spawn({
            let slot = slot.clone();
            move || slot.end(read_pictures(Pictures::new(stdout), &slot, when_full))
        });
        let stderr = thread::spawn(move || read_tail(stderr));
        // A live stream that ffmpeg already paces needs no second clock, which would only beat against the first.
        let pace = if live && period <= LIVE_PERIOD_MAX { Duration::ZERO } else { period };
        Ok(Self {
            camera,
            live,
            stall_after,
            schedule: Schedule::new(pace),
            number: 0,
            secret: user_information(source),
            stop: stop.clone(),
            slot,
            child,
            pictures: Some(pictures),
            stderr: Some(stderr),
        })
    }

    /// The picture that is handed out now.
    fn frame(&mut self, Arrived { picture: Picture { width, height, data }, at }: Arrived) -> Frame {
        self.schedule.advance(Instant::now());
        let number = self.number;
        self.number += 1;
        let captured_at = if self.live { at } else { SystemTime::now() };
        Frame { number, captured_at, name: None, image: FrameImage::Rgb { width, height, data: data.into() } }
    }

    /// What the end of the stream means.
    fn ended(&mut self, how: Result<(), PpmError>) -> Result<Option<Frame>, CaptureError> {
        let status = self.reap();
        let stderr = self.stderr();
        let camera = self.camera.clone();
        match (status, how) {
            // The cause of a cut picture is whatever ended the child.
            (Some(status), _) if self.live || !status.success() => Err(CaptureError::Exited { camera, status, stderr }),
            (_, Err(error)) => Err(CaptureError::Stream { camera, error }),
            (_, Ok(())) if self.number == 0 => Err(CaptureError::NoPicture { camera, stderr }),
            (_, Ok(())) => Ok(None),
        }
    }

    /// Waits a little for the child to exit by itself, then ends it. `None` when it had to be ended or had been reaped.
    fn reap(&mut self) -> Option<ExitStatus> {
        let closed = Instant::now();
        while closed.elapsed() < EXIT_MAX {
            match self.child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Ok(Some(status)) => return Some(status),
                Err(_) => break,
            }
        }
        self.kill();
        None
    }

    /// Ends the child for sure. Errors mean that it has exited already.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of the child's stderr, once it has exited.
    fn stderr(&mut self) -> String {
        let tail = self.stderr.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let mut tail = redact(tail.trim()).into_owned();
        if let Some(secret) = &self.secret {
            tail = tail.replace(secret.as_str(), "***");
        }
        if tail.is_empty() { "it wrote nothing".to_owned() } else { tail }
    }
}

impl Camera for Ffmpeg {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            if self.stop.is_stopped() {
                return Err(CaptureError::Stopped);
            }
            let early = self.schedule.wait(Instant::now());
            if early.is_zero()
                && let Some(arrived) = self.slot.take()
            {
                return Ok(Some(self.frame(arrived)));
            }
            if let Some(how) = self.slot.take_end() {
                return self.ended(how);
            }
            // A file is not late: its decoder waits for us, or needs its time.
            let silent = self.slot.silent();
            if self.live && silent >= self.stall_after {
                self.kill();
                return Err(CaptureError::Stalled { camera: self.camera.clone(), silent, limit: self.stall_after });
            }
            if early.is_zero() {
                self.slot.wait(POLL);
            } else {
                let _ = self.stop.wait(early.min(POLL));
            }
        }
    }

    fn is_live(&self) -> bool {
        self.live
    }

    fn superseded(&self) -> u64 {
        self.slot.superseded()
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        self.slot.close();
        self.kill();
        // Both pipes are closed by now, so both threads are about to end.
        if let Some(thread) = self.pictures.take() {
            let _ = thread.join();
        }
        if let Some(thread) = self.stderr.take() {
            let _ = thread.join();
        }
    }
}

/// What ffmpeg is told. These options mean the same from ffmpeg 5.1 to 7.
fn arguments(source: &Source, period: Duration, stall_after: Duration) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["-nostdin", "-hide_banner", "-loglevel", "error"].map(OsString::from).into();
    match source {
        Source::Rtsp(url) => {
            // Over UDP a lossy link shows as broken pictures; over TCP as a late one.
            let timeout = (stall_after * 2).max(NETWORK_TIMEOUT_MIN).as_micros().to_string();
            arguments.extend(["-rtsp_transport", "tcp", "-timeout", &timeout, "-i", url].map(OsString::from));
        }
        Source::File(path) | Source::Folder(path) => {
            // The protocol is named so that no path can name another one.
            let mut input = OsString::from("file:");
            input.push(path);
            arguments.extend([OsString::from("-i"), input]);
        }
    }
    // A rate as a fraction: frames per microseconds.
    let rate = format!("fps=1000000/{}", period.as_micros().max(1));
    arguments.extend(["-an", "-sn", "-dn", "-vf", &rate, "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"].map(OsString::from));
    arguments
}

/// Moves pictures from the pipe to the slot until either ends.
fn read_pictures(mut pictures: Pictures<impl Read>, slot: &Slot, when_full: WhenFull) -> Result<(), PpmError> {
    while let Some(picture) = pictures.next()? {
        if !slot.put(picture, when_full) {
            break;
        }
    }
    Ok(())
}

/// The last [`STDERR_MAX`] bytes of a stream, from the start of a line: half a URL could not be recognised any more.
fn read_tail(mut stream: impl Read) -> String {
    let (mut tail, mut chunk) = (Vec::new(), [0; 1 << 10]);
    let mut cut = false;
    while let Ok(length @ 1..) = stream.read(&mut chunk) {
        tail.extend_from_slice(&chunk[..length]);
        if tail.len() > STDERR_MAX {
            tail.drain(..tail.len() - STDERR_MAX);
            cut = true;
        }
    }
    let start = if cut { tail.iter().position(|byte| *byte == b'\n').map_or(tail.len(), |at| at + 1) } else { 0 };
    String::from_utf8_lossy(&tail[start..]).into_owned()
}

/// `user:password` of an RTSP URL.
fn user_information(source: &Source) -> Option<String> {
    let Source::Rtsp(url) = source else { return None };
    let (_, rest) = url.split_once("://")?;
    rest.rsplit_once('@').map(|(user, _)| user.to_owned()).filter(|user| !user.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_without_ffmpeg_is_told_how_to_get_it() {
        let opened = Ffmpeg::open(
            "ffmpeg-that-is-not-there",
            &Source::Rtsp("rtsp://me:secret@192.0.2.7/s".into()),
            LIVE_PERIOD_MAX,
            EXIT_MAX,
            &Stop::new(),
        );
        let error = opened.err().expect("there is no such program").to_string();
        assert!(error.contains("apt install ffmpeg") && error.contains("rtsp://***@192.0.2.7/s") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn the_tail_of_stderr_is_short_and_starts_with_a_whole_line() {
        assert_eq!(read_tail(&b"one\ntwo"[..]), "one\ntwo");
        let long = "x".repeat(STDERR_MAX) + "rtsp://me:secret@host\n" + &"y".repeat(STDERR_MAX - 30) + "\nlast";
        let tail = read_tail(long.as_bytes());
        assert!(tail.len() <= STDERR_MAX && tail.ends_with("\nlast") && !tail.contains("secret"), "{tail}");
        assert_eq!(read_tail("z".repeat(9000).as_bytes()), "");
    }

    #[test]
    fn the_rate_and_the_timeout_are_told_to_ffmpeg() {
        let told = |source: Source, period, stall| {
            let arguments = arguments(&source, Duration::from_millis(period), Duration::from_secs(stall));
            arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        let file = told(Source::File("-clip.mp4".into()), 250, 10);
        assert!(file.contains("-i file:-clip.mp4 ") && file.contains("fps=1000000/250000 "), "{file}");
        let rtsp = told(Source::Rtsp("rtsp://host/s".into()), 1000, 10);
        assert!(rtsp.contains("-rtsp_transport tcp -timeout 20000000 -i rtsp://host/s "), "{rtsp}");
    }
}
