//! Which frames of a clip are taken. Pure.

use std::time::Duration;

use firmware_config::manifest::VideoRules;

/// Cut from both ends of a clip with time to spare: where cameras shake and titles stand.
const SKIPPED_SECONDS: f64 = 1.0;

/// Indices of the frames to take from a clip of `total_frames` at `native_fps` frames/s, ascending,
/// each once.
///
/// Evenly spread at the rules' rate, at most their maximum and at least one; frame i was taken at i
/// / `native_fps`. Empty only when there are no frames.
pub(super) fn sample(
    total_frames: usize,
    native_fps: f64,
    duration: Duration,
    rules: &VideoRules,
) -> Vec<usize> {
    let Some(last) = total_frames.checked_sub(1) else {
        return Vec::new();
    };
    let seconds = duration.as_secs_f64();
    // The cast saturates, so a nonsensical length costs no more than the maximum.
    let wanted = (rules.frames_per_second * seconds).round_ties_even() as usize;
    let count = wanted.min(rules.frames_max).max(1);
    let (mut first, mut end) = (0, last);
    // Seconds against frames times a rate: dimensions that do not match, but it is transformers'
    // own condition, word for word, and at the released rate of one frame a second it says what it
    // should.
    if seconds - 2.0 * SKIPPED_SECONDS > rules.frames_max as f64 * rules.frames_per_second {
        let skipped = SKIPPED_SECONDS * native_fps;
        (first, end) = (
            skipped as usize,
            ((total_frames as f64 - skipped) as usize).min(last),
        );
        if first >= end {
            (first, end) = (0, last);
        }
    }
    let step = (end - first) as f64 / count.saturating_sub(1).max(1) as f64;
    let spread = |i: usize| {
        if i + 1 == count && count > 1 {
            end
        } else {
            (i as f64 * step + first as f64) as usize
        }
    };
    let mut indices: Vec<usize> = (0..count).map(spread).collect();
    indices.dedup();
    indices
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: VideoRules = VideoRules {
        frames_per_second: 1.0,
        frames_max: 64,
    };

    fn taken(total: usize, fps: f64) -> Vec<usize> {
        sample(
            total,
            fps,
            Duration::from_secs_f64(total as f64 / fps),
            &RULES,
        )
    }

    #[test]
    fn spreads_frames_over_the_clip() {
        assert_eq!(taken(4, 1.0), [0, 1, 2, 3]);
        assert_eq!(taken(100, 25.0), [0, 33, 66, 99]);
        assert_eq!(
            taken(10, 25.0),
            [0],
            "0.4 s round to none, and one is taken"
        );
        assert_eq!(taken(5, 2.0), [0, 4], "2.5 s round to the even 2");
        assert_eq!(taken(7, 2.0), [0, 2, 4, 6], "3.5 s round to the even 4");
        assert_eq!(taken(0, 25.0), [0usize; 0]);
    }

    #[test]
    fn long_clips_lose_a_second_at_both_ends() {
        let long = taken(67 * 30, 30.0);
        assert_eq!((long.len(), long[0], long[63]), (64, 30, 66 * 30));
        let short = taken(66 * 30, 30.0);
        assert_eq!((short.len(), short[0], short[63]), (64, 0, 66 * 30 - 1));
    }

    proptest! {
        #[test]
        fn indices_ascend_within_the_clip(total in 0usize..5000, fps in prop_oneof![Just(0.0), Just(f64::NAN), 0.01f64..240.0], ms in 0u64..10_000_000) {
            let indices = sample(total, fps, Duration::from_millis(ms), &RULES);
            prop_assert!(indices.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(indices.iter().all(|&index| index < total));
            prop_assert!(indices.len() <= 64 && indices.is_empty() == (total == 0));
        }
    }
}
