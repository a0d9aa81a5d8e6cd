//! What ffmpeg is told.

use std::ffi::OsString;
use std::time::Duration;

use firmware_config::agent::Source;

/// ffmpeg leaves by itself this much later than we would have killed it: should we be killed first, it does not outlive us for long.
const GRACE: Duration = Duration::from_secs(5);

/// The arguments that make ffmpeg (5.1 or later) write `source` to its stdout, one PPM picture each `period`.
///
/// A network camera may be silent for `silence` before ffmpeg may give up by itself.
pub(super) fn arguments(source: &Source, period: Duration, silence: Duration) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = ["-nostdin", "-hide_banner", "-loglevel", "error"].map(Into::into).into();
    match source {
        Source::Rtsp(url) => {
            // Over UDP a lost packet is a picture with holes, which the model would describe.
            let timeout = (silence + GRACE).as_micros().to_string();
            arguments.extend(["-rtsp_transport", "tcp", "-timeout", &timeout, "-i", url].map(Into::into));
        }
        Source::File(path) | Source::Folder(path) => {
            // A playlist with a video's name could make ffmpeg fetch from anywhere.
            arguments.extend(["-protocol_whitelist", "file", "-i"].map(Into::into));
            // The prefix keeps a name like `concat:a|b` a name.
            let mut url = OsString::from("file:");
            url.push(path);
            arguments.push(url);
        }
    }
    // The first stream of moving pictures: neither sound nor cover art.
    arguments.extend(["-map", "0:V:0"].map(Into::into));
    if !period.is_zero() {
        arguments.extend(["-vf".into(), format!("fps=1000000/{}", period.as_micros().max(1)).into()]);
    }
    arguments.extend(["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-flush_packets", "1", "-"].map(Into::into));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(source: Source, period: Duration) -> String {
        arguments(&source, period, Duration::from_secs(30)).join(" ".as_ref()).into_string().expect("UTF-8")
    }

    #[test]
    fn a_network_camera() {
        assert_eq!(
            line(Source::Rtsp("rtsp://192.0.2.7/stream2".into()), Duration::from_millis(1500)),
            "-nostdin -hide_banner -loglevel error -rtsp_transport tcp -timeout 35000000 -i rtsp://192.0.2.7/stream2 \
             -map 0:V:0 -vf fps=1000000/1500000 -f image2pipe -c:v ppm -pix_fmt rgb24 -flush_packets 1 -"
        );
    }

    #[test]
    fn a_video_file() {
        assert_eq!(
            line(Source::File("/clip.mp4".into()), Duration::ZERO),
            "-nostdin -hide_banner -loglevel error -protocol_whitelist file -i file:/clip.mp4 \
             -map 0:V:0 -f image2pipe -c:v ppm -pix_fmt rgb24 -flush_packets 1 -"
        );
    }
}
