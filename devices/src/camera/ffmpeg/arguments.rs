//! The arguments of ffmpeg; these options mean the same from ffmpeg 5.1 to 7.

use std::ffi::OsString;
use std::time::Duration;

use firmware_config::agent::Source;

/// ffmpeg gives up on a silent network this much later than the agent gives up on ffmpeg: its own
/// timeout is for the case that the agent was killed.
const NETWORK_GRACE: Duration = Duration::from_secs(5);

/// ffmpeg keeps this timeout as microseconds in an `int`.
const NETWORK_TIMEOUT_MAX: Duration = Duration::from_secs(30 * 60);

/// The arguments that make ffmpeg write `source` to its stdout, one PPM image each `period`, or
/// every image if that is zero.
///
/// `silence_max` is how long a network camera may deliver nothing.
pub(super) fn arguments(source: &Source, period: Duration, silence_max: Duration) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["-nostdin", "-hide_banner", "-loglevel", "error"]
        .map(Into::into)
        .into();
    match source {
        Source::Rtsp(url) => {
            // A lossy link damages images over UDP; over TCP it only delays them.
            let timeout = silence_max
                .saturating_add(NETWORK_GRACE)
                .min(NETWORK_TIMEOUT_MAX)
                .as_micros()
                .to_string();
            arguments.extend(
                ["-rtsp_transport", "tcp", "-timeout", &timeout, "-i", url].map(Into::into),
            );
        }
        Source::File(path) | Source::Folder(path) => {
            // A playlist with a video's name could make ffmpeg fetch from anywhere.
            arguments.extend(["-protocol_whitelist", "file", "-i"].map(Into::into));
            // The protocol is named so that no path can name another one.
            let mut input = OsString::from("file:");
            input.push(path);
            arguments.push(input);
        }
    }
    // The first video stream: neither sound nor cover art.
    arguments.extend(["-map", "0:V:0"].map(Into::into));
    if !period.is_zero() {
        // A rate as a fraction: frames per microseconds.
        arguments.extend([
            "-vf".into(),
            format!("fps=1000000/{}:eof_action=pass", period.as_micros().max(1)).into(),
        ]);
    }
    // Flushed, or the end of an image would stay in a buffer until the next one comes.
    arguments.extend(
        [
            "-f",
            "image2pipe",
            "-c:v",
            "ppm",
            "-pix_fmt",
            "rgb24",
            "-flush_packets",
            "1",
            "-",
        ]
        .map(Into::into),
    );
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(source: Source, period: Duration, silence: Duration) -> String {
        arguments(&source, period, silence)
            .join(" ".as_ref())
            .into_string()
            .expect("UTF-8")
    }

    #[test]
    fn a_network_camera() {
        assert_eq!(
            line(
                Source::Rtsp("rtsp://host/s".into()),
                Duration::from_millis(1500),
                Duration::from_secs(10)
            ),
            "-nostdin -hide_banner -loglevel error -rtsp_transport tcp -timeout 15000000 -i rtsp://host/s \
             -map 0:V:0 -vf fps=1000000/1500000:eof_action=pass -f image2pipe -c:v ppm -pix_fmt rgb24 -flush_packets 1 -"
        );
        let longest = line(
            Source::Rtsp("rtsp://host/s".into()),
            Duration::ZERO,
            Duration::MAX,
        );
        assert!(longest.contains(" -timeout 1800000000 "), "{longest}");
    }

    #[test]
    fn a_video_file() {
        assert_eq!(
            line(
                Source::File("-clip.mp4".into()),
                Duration::ZERO,
                Duration::ZERO
            ),
            "-nostdin -hide_banner -loglevel error -protocol_whitelist file -i file:-clip.mp4 \
             -map 0:V:0 -f image2pipe -c:v ppm -pix_fmt rgb24 -flush_packets 1 -"
        );
    }
}
