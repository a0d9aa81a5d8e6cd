//! What `ffprobe` says about a video file.

use std::time::Duration;

use serde::Deserialize;

use super::ClipError;

/// A video stream, as known before it is decoded.
#[derive(Debug, PartialEq)]
pub(super) struct VideoStream {
    /// Frames in it.
    pub(super) frames: usize,
    /// Frames per second.
    pub(super) fps: f64,
    /// Its length.
    pub(super) duration: Duration,
}

/// What is counted as a frame.
#[derive(Clone, Copy)]
pub(super) enum Count {
    /// Every packet: fast, and nearly always right.
    Packets,
    /// What a decoder puts out.
    Frames,
}

/// The arguments that make ffprobe describe the first video stream, besides the file.
pub(super) fn arguments(count: Count) -> [&'static str; 7] {
    [
        "-select_streams",
        "v:0",
        match count {
            Count::Packets => "-count_packets",
            Count::Frames => "-count_frames",
        },
        "-of",
        "json",
        "-show_entries",
        "stream=nb_read_packets,nb_read_frames,avg_frame_rate,duration:format=duration",
    ]
}

/// Reads ffprobe's JSON.
pub(super) fn parse(json: &[u8]) -> Result<VideoStream, ClipError> {
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
    let probe: Probe = serde_json::from_slice(json)
        .map_err(|error| ClipError::Probe(format!("unexpected JSON from ffprobe: {error}")))?;
    let stream = probe
        .streams
        .first()
        .ok_or_else(|| ClipError::Probe("no video stream in it".to_owned()))?;

    let counted = stream
        .nb_read_frames
        .as_ref()
        .or(stream.nb_read_packets.as_ref());
    let frames: usize = counted
        .and_then(|count| count.parse().ok())
        .ok_or_else(|| ClipError::Probe("ffprobe counted no frames".to_owned()))?;

    let (numerator, denominator) = stream
        .avg_frame_rate
        .split_once('/')
        .unwrap_or((&stream.avg_frame_rate, "1"));
    let fps = numerator.parse::<f64>().unwrap_or(0.0) / denominator.parse::<f64>().unwrap_or(0.0);
    if !(fps.is_finite() && fps > 0.0) {
        return Err(ClipError::Probe(format!(
            "its frame rate is {}, expected one above 0",
            stream.avg_frame_rate
        )));
    }

    let probed = stream
        .duration
        .as_ref()
        .or(probe.format.duration.as_ref())
        .and_then(|seconds| seconds.parse::<f64>().ok());
    let seconds = probed.unwrap_or(frames as f64 / fps);
    let duration = Duration::try_from_secs_f64(seconds).map_err(|_| {
        ClipError::Probe(format!("its length is {seconds} s, expected 0 s or more"))
    })?;
    Ok(VideoStream {
        frames,
        fps,
        duration,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_read() {
        let json = br#"{"streams":[{"avg_frame_rate":"30000/1001","nb_read_packets":"90"}],"format":{"duration":"3.003"}}"#;
        let stream = parse(json).expect("a video stream");
        assert_eq!(
            (stream.frames, stream.duration),
            (90, Duration::from_millis(3003))
        );
        assert!((stream.fps - 29.97).abs() < 0.01);
        let decoded = br#"{"streams":[{"avg_frame_rate":"30/1","nb_read_packets":"90","nb_read_frames":"60"}],"format":{}}"#;
        assert_eq!(parse(decoded).expect("a video stream").frames, 60);
    }

    #[test]
    fn unusable_probes_are_refused() {
        for (json, expected) in [
            (r#"{"streams":[],"format":{}}"#, "no video stream in it"),
            (
                r#"{"streams":[{"avg_frame_rate":"0/0","nb_read_packets":"1"}],"format":{}}"#,
                "its frame rate is 0/0, expected one above 0",
            ),
            (
                r#"{"streams":[{"avg_frame_rate":"1/1"}],"format":{}}"#,
                "ffprobe counted no frames",
            ),
            (
                r#"{"streams":[{"avg_frame_rate":"1/1","nb_read_packets":"1","duration":"-1"}],"format":{}}"#,
                "its length is -1 s, expected 0 s or more",
            ),
        ] {
            let error = parse(json.as_bytes()).expect_err(json).to_string();
            assert_eq!(error, expected);
        }
        let error = parse(b"{").expect_err("no JSON").to_string();
        assert!(
            error.starts_with("unexpected JSON from ffprobe: "),
            "{error}"
        );
    }
}
