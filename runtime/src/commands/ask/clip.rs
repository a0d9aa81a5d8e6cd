//! Video files to clips, through `ffprobe` and `ffmpeg` children: only the sampled frames are
//! handed over.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;
use std::process::ChildStdout;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use devices::camera::ffmpeg::{Child, readable};
use devices::camera::ppm::Pictures;
use firmware_config::manifest::VideoRules;
use serde::Deserialize;
use tracing::warn;
use vlm::Picture;
use vlm::video::{Clip, ClipFrame, sample};

use crate::commands::exit::{Exit, Failure, OrExit};

/// Most bytes of decoded frames: 64 frames of 2560 x 1440 are 700 MB.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Most bytes of ffprobe's JSON, which has a few hundred.
const PROBE_BYTES_MAX: u64 = 1 << 20;

/// A child that is not done by then is ended: an hour of video takes a small box some ten minutes.
const CHILD_TIME_MAX: Duration = Duration::from_secs(15 * 60);

/// Reads the frames of a video file that `rules` sample.
pub(super) fn read(path: &Path, rules: &VideoRules) -> Result<Clip, Failure> {
    let named = |error: anyhow::Error| error.context(format!("cannot show {}", path.display()));
    readable(path)
        .map_err(|error| named(anyhow!("{error}; name a video file that can be read")))
        .or_exit(Exit::Io)?;
    clip(path, rules).map_err(|error| {
        // A file that is no video is a wrong argument: reading it again will not help.
        let exit = if error.downcast_ref::<io::Error>().is_some() {
            Exit::Io
        } else {
            Exit::Usage
        };
        Failure {
            exit,
            error: named(error),
        }
    })
}

fn clip(path: &Path, rules: &VideoRules) -> anyhow::Result<Clip> {
    let mut stream = probe(path, Count::Packets)?;
    let mut indices = sample(stream.frames, stream.fps, stream.duration, rules);
    ensure!(!indices.is_empty(), "no video frames in it");
    let mut pictures = decode(path, &indices)?;
    if pictures.len() < indices.len() {
        // Not every packet shows a frame: an edit list cuts some off, and decoders drop damaged
        // ones. Counting frames takes decoding all.
        stream = probe(path, Count::Frames)?;
        indices = sample(stream.frames, stream.fps, stream.duration, rules);
        pictures = decode(path, &indices)?;
    }
    let (decoded, wanted) = (pictures.len(), indices.len());
    ensure!(
        decoded > 0 && decoded == wanted,
        "ffmpeg decoded {decoded} of {wanted} frames; convert it first"
    );
    let frames = pictures.into_iter().zip(&indices);
    let frames = frames
        .map(|(picture, &index)| ClipFrame {
            picture,
            at: Duration::from_secs_f64(index as f64 / stream.fps),
        })
        .collect();
    Ok(Clip {
        frames,
        duration: stream.duration,
    })
}

/// What is known of a video before it is decoded.
#[derive(Debug, PartialEq)]
struct Stream {
    /// Frames in it.
    frames: usize,
    /// Frames a second.
    fps: f64,
    /// Its length.
    duration: Duration,
}

/// What is counted as a frame.
#[derive(Clone, Copy)]
enum Count {
    /// Every packet: fast, and nearly always right.
    Packets,
    /// What a decoder puts out.
    Frames,
}

fn probe(path: &Path, count: Count) -> anyhow::Result<Stream> {
    let count = match count {
        Count::Packets => "-count_packets",
        Count::Frames => "-count_frames",
    };
    let entries = "stream=nb_read_packets,nb_read_frames,avg_frame_rate,duration:format=duration";
    let wanted = [
        "-select_streams",
        "v:0",
        count,
        "-of",
        "json",
        "-show_entries",
        entries,
    ];
    let json = run(
        "ffprobe",
        &arguments(path, &wanted),
        path,
        CHILD_TIME_MAX,
        |stdout| {
            let mut json = Vec::new();
            stdout
                .take(PROBE_BYTES_MAX)
                .read_to_end(&mut json)
                .context("ffprobe's output")?;
            Ok(json)
        },
    );
    parse(&json?)
}

/// Reads ffprobe's JSON.
fn parse(json: &[u8]) -> anyhow::Result<Stream> {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(default)]
        streams: Vec<ProbedStream>,
        format: ProbedFormat,
    }
    #[derive(Deserialize)]
    struct ProbedStream {
        avg_frame_rate: String,
        nb_read_packets: Option<String>,
        nb_read_frames: Option<String>,
        duration: Option<String>,
    }
    #[derive(Deserialize)]
    struct ProbedFormat {
        duration: Option<String>,
    }
    let probe: Probe =
        serde_json::from_slice(json).context("ffprobe's output is not the JSON it should be")?;
    let stream = probe.streams.first().context("no video stream in it")?;
    let counted = stream
        .nb_read_frames
        .as_ref()
        .or(stream.nb_read_packets.as_ref());
    let frames: usize = counted
        .and_then(|count| count.parse().ok())
        .context("ffprobe counted no frames")?;
    let (top, bottom) = stream
        .avg_frame_rate
        .split_once('/')
        .unwrap_or((&stream.avg_frame_rate, "1"));
    let fps = top.parse::<f64>().unwrap_or(0.0) / bottom.parse::<f64>().unwrap_or(0.0);
    ensure!(
        fps.is_finite() && fps > 0.0,
        "frame rate {} is none",
        stream.avg_frame_rate
    );
    let told = stream
        .duration
        .as_ref()
        .or(probe.format.duration.as_ref())
        .and_then(|seconds| seconds.parse::<f64>().ok());
    let seconds = told.unwrap_or(frames as f64 / fps);
    let duration = Duration::try_from_secs_f64(seconds)
        .with_context(|| format!("a clip cannot last {seconds} s"))?;
    Ok(Stream {
        frames,
        fps,
        duration,
    })
}

/// Decodes the frames at `indices`, upright as the file's rotation says.
fn decode(path: &Path, indices: &[usize]) -> anyhow::Result<Vec<Picture>> {
    let numbers: Vec<String> = indices
        .iter()
        .map(|index| format!("eq(n\\,{index})"))
        .collect();
    let (select, most) = (format!("select={}", numbers.join("+")), indices.len());
    let frames = most.to_string();
    let wanted = [
        "-map",
        "0:v:0",
        "-vf",
        &select,
        "-fps_mode",
        "passthrough",
        "-frames:v",
        &frames,
    ];
    // PPM says its own size, so a rotated or changing picture needs no guessing.
    let form = ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"];
    let arguments = arguments(path, &[&wanted[..], &form].concat());
    run("ffmpeg", &arguments, path, CHILD_TIME_MAX, move |stdout| {
        read_frames(stdout, most, FRAME_BYTES_MAX)
    })
}

/// What ffmpeg and ffprobe are told: the file, never as a flag, nor another protocol, not even by a
/// playlist with a video's name.
fn arguments(path: &Path, wanted: &[&str]) -> Vec<OsString> {
    let mut file = OsString::from("file:");
    file.push(path);
    let before = ["-v", "error", "-protocol_whitelist", "file", "-i"].map(OsString::from);
    before
        .into_iter()
        .chain([file])
        .chain(wanted.iter().map(OsString::from))
        .collect()
}

/// Starts `program` on the file at `path` and reads what it writes, on a thread: a read cannot be
/// given a limit, but the child can.
fn run<T: Send + 'static>(
    program: &str,
    arguments: &[OsString],
    path: &Path,
    limit: Duration,
    read: impl FnOnce(ChildStdout) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (mut child, stdout) = Child::start(program, arguments)
        .with_context(|| format!("cannot start {program}; install ffmpeg"))?;
    let (sender, output) = sync_channel(1);
    // It ends with the child, and then nobody may be there to take what was read.
    thread::spawn(move || sender.send(read(stdout)));
    match output.recv_timeout(limit) {
        Ok(Ok(read)) => {
            let status = child.end().with_context(|| format!("{program} was lost"))?;
            ensure!(
                status.success(),
                "no video that {program} can read ({}); convert it first",
                last_words(child.said(), path)
            );
            if !child.said().is_empty() {
                warn!(
                    "{} is damaged, and shown as far as it can be: {program}: {}",
                    path.display(),
                    last_words(child.said(), path)
                );
            }
            Ok(read)
        }
        Ok(Err(error)) => {
            // It would wait for ever for somebody to read the rest.
            child.kill();
            Err(if child.said().is_empty() {
                error
            } else {
                error.context(format!("{program}: {}", last_words(child.said(), path)))
            })
        }
        Err(RecvTimeoutError::Disconnected) => Err(anyhow!(
            "reading what {program} writes ended by a fault of Egret; please report it"
        )),
        Err(RecvTimeoutError::Timeout) => Err(anyhow!(
            "{program} was not done after {limit:?}; cut the clip, or scale it down first"
        )),
    }
}

/// Reads at most `most` frames, and `bytes_max` of pixels.
fn read_frames(stream: impl Read, most: usize, bytes_max: usize) -> anyhow::Result<Vec<Picture>> {
    let mut frames = Pictures::new(stream);
    let mut pictures = Vec::new();
    let mut left = bytes_max;
    while pictures.len() < most {
        let Some(frame) = frames.next_picture().context("ffmpeg's output")? else {
            break;
        };
        let too_large =
            || format!("its sampled frames are over {bytes_max} bytes; scale it down first");
        left = left.checked_sub(frame.data.len()).with_context(too_large)?;
        pictures.push(Picture::from_rgb(frame.width, frame.height, frame.data)?);
    }
    Ok(pictures)
}

/// The last thing a child said, without the file's name: that is told already.
fn last_words(said: &str, path: &Path) -> String {
    let last = said
        .rsplit("; ")
        .find(|line| !line.is_empty())
        .unwrap_or("it does not say why");
    let file = format!("file:{}: ", path.display());
    last.trim_start_matches(&file).chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn probes_are_read() {
        let json = br#"{"streams":[{"avg_frame_rate":"30000/1001","nb_read_packets":"90"}],"format":{"duration":"3.003"}}"#;
        let stream = parse(json).unwrap();
        assert_eq!(
            (stream.frames, stream.duration),
            (90, Duration::from_millis(3003))
        );
        assert!((stream.fps - 29.97).abs() < 0.01);
        let decoded = br#"{"streams":[{"avg_frame_rate":"30/1","nb_read_packets":"90","nb_read_frames":"60"}],"format":{}}"#;
        assert_eq!(parse(decoded).unwrap().frames, 60);
    }

    #[test]
    fn bad_probes_are_told() {
        let refuse = |json: &str| parse(json.as_bytes()).unwrap_err().to_string();
        insta::assert_snapshot!(refuse(r#"{"streams":[],"format":{}}"#), @"no video stream in it");
        insta::assert_snapshot!(refuse(r#"{"streams":[{"avg_frame_rate":"0/0","nb_read_packets":"1"}],"format":{}}"#), @"frame rate 0/0 is none");
        insta::assert_snapshot!(refuse(r#"{"streams":[{"avg_frame_rate":"1/1"}],"format":{}}"#), @"ffprobe counted no frames");
        insta::assert_snapshot!(refuse(r#"{"streams":[{"avg_frame_rate":"1/1","nb_read_packets":"1","duration":"-1"}],"format":{}}"#), @"a clip cannot last -1 s");
    }

    #[test]
    fn frames_of_different_sizes_are_read_one_after_another() {
        let mut stream: &[u8] = b"P6\n1 2\n255\nabcdefP6\n1 1\n255\nxyz";
        let pictures = read_frames(&mut stream, 9, 99).unwrap();
        assert_eq!(
            pictures
                .iter()
                .map(|picture| (picture.height(), picture.pixels()))
                .collect::<Vec<_>>(),
            [(2, &b"abcdef"[..]), (1, b"xyz")]
        );
    }

    #[test]
    fn frames_are_weighed_together() {
        let stream: &[u8] = b"P6\n1 2\n255\nabcdefP6\n1 1\n255\nxyz";
        assert_eq!(read_frames(stream, 9, 9).unwrap().len(), 2);
        assert_eq!(read_frames(stream, 1, 8).unwrap().len(), 1);
        insta::assert_snapshot!(read_frames(stream, 9, 8).unwrap_err(), @"its sampled frames are over 8 bytes; scale it down first");
    }

    #[test]
    fn children_are_read_and_judged_and_ended() {
        let told = |script: &str, limit: Duration| {
            let arguments = ["-c", script].map(OsString::from);
            let read = run("sh", &arguments, Path::new("/a.mp4"), limit, |stdout| {
                Ok(read_frames(stdout, 9, 99)?.len())
            });
            read.map_or_else(
                |error| format!("{error:#}"),
                |frames| format!("{frames} frames"),
            )
        };
        let long = Duration::from_secs(60);
        let told: Vec<_> = [
            "printf 'P6\n1 1\n255\nrgb'",
            "echo 'file:/a.mp4: no video' >&2; exit 3",
            "printf 'P6\n1 1\n255\nr'; echo lost >&2",
            "printf P5; exec sleep 3600",
        ]
        .map(|script| told(script, long))
        .into_iter()
        .chain([told("exec sleep 3600", Duration::from_millis(50))])
        .collect();
        insta::assert_snapshot!(told.join("\n"), @"
        1 frames
        no video that sh can read (no video); convert it first
        sh: lost: ffmpeg's output: ended inside a picture, after 1 of 3 bytes of pixels
        ffmpeg's output: no PPM header (P6, width, height, 255)
        sh was not done after 50ms; cut the clip, or scale it down first
        ");
    }

    #[test]
    fn a_pipe_is_no_video_and_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("clip.mp4");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let error = read(
            &pipe,
            &VideoRules {
                frames_per_second: 1.0,
                frames_max: 4,
            },
        )
        .unwrap_err();
        assert_eq!(error.exit, Exit::Io);
        assert!(
            format!("{:#}", error.error)
                .ends_with("is no file; name a video file that can be read"),
            "{:#}",
            error.error
        );
    }
}
