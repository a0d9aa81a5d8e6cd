//! Video files to clips, through `ffprobe` and `ffmpeg` children: only the sampled frames are handed over.

use std::io::{self, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use firmware_config::manifest::VideoRules;
use serde::Deserialize;
use vlm::Picture;
use vlm::video::{Clip, ClipFrame, sample};

use crate::exit::{Exit, Failure, OrExit};

/// Most bytes of decoded frames: 64 frames of 2560 x 1440 are 700 MB.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Most of a child's complaints that is kept, in bytes.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

/// Longest header of a decoded frame: `P6\n65536 65536\n255\n`.
const HEADER_BYTES_MAX: usize = 32;

/// Reads the frames of a video file that `rules` sample.
pub(super) fn read(path: &Path, rules: &VideoRules) -> Result<Clip, Failure> {
    let named = |error: anyhow::Error| error.context(format!("cannot show {}", path.display()));
    // The children's words on a missing file are poor; ours name it.
    std::fs::File::open(path).map_err(|error| named(anyhow!("{error}; name a video file that can be read"))).or_exit(Exit::Io)?;
    clip(path, rules).map_err(|error| {
        // A file that is no video is a wrong argument: reading it again will not help.
        let exit = if error.downcast_ref::<io::Error>().is_some() { Exit::Io } else { Exit::Usage };
        Failure { exit, error: named(error) }
    })
}

fn clip(path: &Path, rules: &VideoRules) -> anyhow::Result<Clip> {
    let stream = probe(path)?;
    let indices = sample(stream.frames, stream.fps, stream.duration, rules);
    ensure!(!indices.is_empty(), "no video frames in it");
    let pictures = decode(path, &indices)?;
    ensure!(!pictures.is_empty(), "ffmpeg decoded none of {} frames", indices.len());
    let frames = pictures.into_iter().zip(&indices);
    let frames = frames.map(|(picture, &index)| ClipFrame { picture, at: Duration::from_secs_f64(index as f64 / stream.fps) }).collect();
    Ok(Clip { frames, duration: stream.duration })
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

fn probe(path: &Path) -> anyhow::Result<Stream> {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v:0", "-count_packets", "-of", "json"])
        .args(["-show_entries", "stream=nb_read_packets,avg_frame_rate,duration:format=duration", "-i"])
        .arg(local(path))
        .stdin(Stdio::null())
        .output()
        .context("cannot start ffprobe; install ffmpeg")?;
    ensure!(output.status.success(), "no video that ffprobe can read ({}); convert it first", last_line(&output.stderr, path));
    parse(&output.stdout)
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
        duration: Option<String>,
    }
    #[derive(Deserialize)]
    struct ProbedFormat {
        duration: Option<String>,
    }
    let probe: Probe = serde_json::from_slice(json).context("ffprobe's output is not the JSON it should be")?;
    let stream = probe.streams.first().context("no video stream in it")?;
    let frames: usize = stream.nb_read_packets.as_deref().and_then(|count| count.parse().ok()).context("ffprobe counted no frames")?;
    let (top, bottom) = stream.avg_frame_rate.split_once('/').unwrap_or((&stream.avg_frame_rate, "1"));
    let fps = top.parse::<f64>().unwrap_or(0.0) / bottom.parse::<f64>().unwrap_or(0.0);
    ensure!(fps.is_finite() && fps > 0.0, "frame rate {} is none", stream.avg_frame_rate);
    let told = stream.duration.as_ref().or(probe.format.duration.as_ref()).and_then(|seconds| seconds.parse::<f64>().ok());
    let seconds = told.unwrap_or(frames as f64 / fps);
    let duration = Duration::try_from_secs_f64(seconds).with_context(|| format!("a clip cannot last {seconds} s"))?;
    Ok(Stream { frames, fps, duration })
}

/// Decodes the frames at `indices`, upright as the file's rotation says.
fn decode(path: &Path, indices: &[usize]) -> anyhow::Result<Vec<Picture>> {
    let wanted: Vec<String> = indices.iter().map(|index| format!("eq(n\\,{index})")).collect();
    let mut child = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-i"])
        .arg(local(path))
        .args(["-map", "0:v:0", "-vf", &format!("select={}", wanted.join("+")), "-fps_mode", "passthrough"])
        // PPM says its own size, so a rotated or changing picture needs no guessing.
        .args(["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-frames:v", &indices.len().to_string(), "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ffmpeg; install it")?;
    let mut complaints = child.stderr.take().context("ffmpeg has no stderr")?;
    // Read beside the frames: a child that cannot complain stops working.
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What is past the limit is read and forgotten; a pipe that fails has ended.
        let _ = complaints.by_ref().take(COMPLAINT_BYTES_MAX).read_to_end(&mut text);
        let _ = io::copy(&mut complaints, &mut io::sink());
        text
    });
    let mut frames = BufReader::new(child.stdout.take().context("ffmpeg has no output")?);
    let pictures = read_frames(&mut frames, indices.len());
    if pictures.is_err() {
        // It would wait for ever for somebody to read the rest; that it may be gone already is fine.
        let _ = child.kill();
    }
    let status = child.wait().context("ffmpeg was lost")?;
    let pictures = pictures?;
    let complaints = complaints.join().unwrap_or_default();
    ensure!(status.success(), "no video that ffmpeg can decode ({}); convert it first", last_line(&complaints, path));
    Ok(pictures)
}

/// Reads at most `most` PPM pictures.
fn read_frames(frames: &mut impl Read, most: usize) -> anyhow::Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    let mut left = FRAME_BYTES_MAX;
    while pictures.len() < most {
        let Some((width, height)) = read_header(frames)? else { break };
        let bytes = width as usize * height as usize * 3;
        ensure!(bytes <= left, "its sampled frames are over {FRAME_BYTES_MAX} bytes; scale it down first");
        left -= bytes;
        let mut pixels = vec![0; bytes];
        frames.read_exact(&mut pixels).context("ffmpeg stopped inside a frame")?;
        pictures.push(Picture::from_rgb(width, height, pixels)?);
    }
    Ok(pictures)
}

/// Reads `P6 WIDTH HEIGHT 255` and the one blank behind it; `None` at the end of the stream. Sides are at most 16 bits.
fn read_header(frames: &mut impl Read) -> anyhow::Result<Option<(u32, u32)>> {
    let mut header = Vec::new();
    let mut byte = [0];
    while header.iter().filter(|byte: &&u8| byte.is_ascii_whitespace()).count() < 4 {
        ensure!(header.len() < HEADER_BYTES_MAX, "ffmpeg's frame header is too long");
        if frames.read(&mut byte).context("ffmpeg's output")? == 0 {
            ensure!(header.is_empty(), "ffmpeg stopped inside a frame header");
            return Ok(None);
        }
        header.push(byte[0]);
    }
    let header = String::from_utf8_lossy(&header);
    let fields: Vec<&str> = header.split_ascii_whitespace().collect();
    match fields[..] {
        ["P6", width, height, "255"] => {
            let side = |text: &str| text.parse::<u16>().map(u32::from).with_context(|| format!("frame side {text:?} is none"));
            Ok(Some((side(width)?, side(height)?)))
        }
        _ => anyhow::bail!("ffmpeg's frame header is {header:?}: expected P6"),
    }
}

/// The last thing a child said, without the file's name: that is told already.
fn last_line(stderr: &[u8], path: &Path) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it does not say why");
    let file = format!("file:{}: ", path.display());
    line.trim_start_matches(&file).chars().take(200).collect()
}

/// The file as ffmpeg takes it: never a flag, never another protocol.
fn local(path: &Path) -> std::ffi::OsString {
    let mut url = std::ffi::OsString::from("file:");
    url.push(path);
    url
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn probes_are_read() {
        let json = br#"{"streams":[{"avg_frame_rate":"30000/1001","nb_read_packets":"90"}],"format":{"duration":"3.003"}}"#;
        let stream = parse(json).unwrap();
        assert_eq!((stream.frames, stream.duration), (90, Duration::from_millis(3003)));
        assert!((stream.fps - 29.97).abs() < 0.01);
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
        let pictures = read_frames(&mut stream, 9).unwrap();
        assert_eq!(
            pictures.iter().map(|picture| (picture.height(), picture.pixels())).collect::<Vec<_>>(),
            [(2, &b"abcdef"[..]), (1, b"xyz")]
        );
    }

    #[test]
    fn broken_streams_are_told() {
        let refuse = |mut bytes: &[u8]| read_frames(&mut bytes, 9).unwrap_err().to_string();
        insta::assert_snapshot!(refuse(b"P6\n1 2\n255\nabc"), @"ffmpeg stopped inside a frame");
        insta::assert_snapshot!(refuse(b"P6\n1 2"), @"ffmpeg stopped inside a frame header");
        insta::assert_snapshot!(refuse(b"P5\n1 2\n255\nabc"), @r#"ffmpeg's frame header is "P5\n1 2\n255\n": expected P6"#);
        insta::assert_snapshot!(refuse(&[b'x'; 99]), @"ffmpeg's frame header is too long");
        insta::assert_snapshot!(refuse(b"P6\n65535 65535\n255\n"), @"its sampled frames are over 1073741824 bytes; scale it down first");
    }
}
