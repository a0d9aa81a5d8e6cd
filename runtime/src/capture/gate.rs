//! The cheap filter before the model: which frames are worth asking about. Pure; time is an
//! argument.
//!
//! A frame is compared with the last *admitted* one, not with the one before it, so that slow
//! change adds up until it counts.

use std::time::Duration;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use firmware_config::agent;

/// Thumbnail sides in pixels; the aspect ratio does not matter to a comparison with itself.
const WIDTH: u32 = 96;
const HEIGHT: u32 = 72;

/// Grey levels (of 255) that a thumbnail pixel may differ by and still count as the same: sensor
/// noise and compression.
const NOISE_LEVELS: u8 = 18;

/// A small grey version of a frame, [72, 96] row-major.
#[derive(Clone, PartialEq, Eq)]
pub struct Thumbnail(Vec<u8>);

impl Thumbnail {
    /// Shrinks a picture of `pixels`, [height, width, RGB] row-major.
    ///
    /// # Errors
    /// When the pixels do not fill the sides.
    pub fn of_rgb(width: u32, height: u32, pixels: &[u8]) -> Result<Self, ThumbnailError> {
        let wrong = || ThumbnailError {
            width,
            height,
            bytes: pixels.len(),
        };
        if width == 0 || height == 0 {
            return Err(wrong());
        }
        let source = ImageRef::new(width, height, pixels, PixelType::U8x3).map_err(|_| wrong())?;
        let mut small = Image::new(WIDTH, HEIGHT, PixelType::U8x3);
        // Averaging over each target pixel's area is what takes the noise out.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Box));
        Resizer::new()
            .resize(&source, &mut small, &options)
            .map_err(|_| wrong())?;
        Ok(Thumbnail(
            small
                .buffer()
                .chunks_exact(3)
                .map(|rgb| luma([rgb[0], rgb[1], rgb[2]]))
                .collect(),
        ))
    }

    /// Share of pixels, 0..=1, that differ by more than noise.
    pub fn changed_share(&self, other: &Thumbnail) -> f64 {
        let changed = self
            .0
            .iter()
            .zip(&other.0)
            .filter(|(a, b)| a.abs_diff(**b) > NOISE_LEVELS)
            .count();
        changed as f64 / self.0.len() as f64
    }
}

impl std::fmt::Debug for Thumbnail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Thumbnail({WIDTH}x{HEIGHT})")
    }
}

/// BT.601 luma.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 299 + u32::from(g) * 587 + u32::from(b) * 114 + 500) / 1000) as u8
}

/// Pixels that do not fill a picture's sides.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
#[error("frame of {width}x{height} RGB: expected both sides above zero and {} bytes, got {bytes}", u64::from(*width) * u64::from(*height) * 3)]
pub struct ThumbnailError {
    width: u32,
    height: u32,
    bytes: usize,
}

/// What the gate says to a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// The model is asked.
    Admit(AdmitReason),
    /// The model is not asked.
    Skip(SkipReason),
}

/// Why a frame is worth asking about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AdmitReason {
    /// Nothing was admitted before.
    First,
    /// Enough of it changed.
    Motion {
        /// Share of changed pixels, 0..=1.
        share: f64,
    },
    /// The scene is unchanged, but the last answer is old.
    MaxAge,
    /// The gate is open: `motion = 0`.
    Ungated,
}

/// Why a frame is not worth asking about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SkipReason {
    /// As the last admitted frame.
    Unchanged {
        /// Share of changed pixels, 0..=1, below the configured one.
        share: f64,
    },
}

/// One camera's gate.
#[derive(Debug)]
pub struct Gate {
    settings: agent::Gate,
    admitted: Option<(Thumbnail, Duration)>,
}

impl Gate {
    /// A gate that has seen nothing.
    pub fn new(settings: agent::Gate) -> Self {
        Gate {
            settings,
            admitted: None,
        }
    }

    /// Remembers a frame that was admitted at `now` and is on its way to the model.
    pub fn admitted(&mut self, thumbnail: Thumbnail, now: Duration) {
        self.admitted = Some((thumbnail, now));
    }

    /// Decides about a frame seen at `now`, a time since any fixed moment that never runs
    /// backwards.
    pub fn decide(&self, thumbnail: &Thumbnail, now: Duration) -> Decision {
        let Some((last, at)) = &self.admitted else {
            return Decision::Admit(AdmitReason::First);
        };
        if self.settings.motion <= 0.0 {
            return Decision::Admit(AdmitReason::Ungated);
        }
        let share = thumbnail.changed_share(last);
        if share >= self.settings.motion {
            Decision::Admit(AdmitReason::Motion { share })
        } else if now.saturating_sub(*at) >= self.settings.max_age {
            Decision::Admit(AdmitReason::MaxAge)
        } else {
            Decision::Skip(SkipReason::Unchanged { share })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flat(level: u8) -> Thumbnail {
        Thumbnail(vec![level; (WIDTH * HEIGHT) as usize])
    }

    /// `flat(0)` with `bright` of its pixels lit.
    fn lit(bright: usize) -> Thumbnail {
        let mut thumbnail = flat(0);
        thumbnail.0[..bright].fill(255);
        thumbnail
    }

    impl Gate {
        /// Decides, with nothing in the way of an admitted frame.
        fn admit(&mut self, thumbnail: Thumbnail, now: Duration) -> Decision {
            let decision = self.decide(&thumbnail, now);
            if let Decision::Admit(_) = decision {
                self.admitted(thumbnail, now);
            }
            decision
        }
    }

    fn gate(motion: f64, max_age_secs: u64) -> Gate {
        Gate::new(agent::Gate {
            motion,
            max_age: Duration::from_secs(max_age_secs),
        })
    }

    #[test]
    fn admits_first_motion_and_age_and_skips_the_rest() {
        let mut gate = gate(0.01, 30);
        let at = Duration::from_secs;
        assert_eq!(
            gate.admit(lit(0), at(0)),
            Decision::Admit(AdmitReason::First)
        );
        assert_eq!(
            gate.admit(lit(10), at(1)),
            Decision::Skip(SkipReason::Unchanged {
                share: 10.0 / 6912.0
            })
        );
        assert_eq!(
            gate.admit(lit(700), at(2)),
            Decision::Admit(AdmitReason::Motion {
                share: 700.0 / 6912.0
            })
        );
        assert_eq!(
            gate.admit(lit(700), at(31)),
            Decision::Skip(SkipReason::Unchanged { share: 0.0 })
        );
        assert_eq!(
            gate.admit(lit(700), at(32)),
            Decision::Admit(AdmitReason::MaxAge)
        );
    }

    #[test]
    fn slow_change_adds_up() {
        let mut gate = gate(0.1, 3600);
        let admitted = (0..=100_u64).filter(|i| {
            matches!(
                gate.admit(lit(*i as usize * 69), Duration::from_secs(*i)),
                Decision::Admit(_)
            )
        });
        assert_eq!(admitted.count(), 10);
    }

    #[test]
    fn an_open_gate_admits_everything() {
        let mut gate = gate(0.0, 30);
        gate.admit(flat(0), Duration::ZERO);
        assert_eq!(
            gate.admit(flat(0), Duration::ZERO),
            Decision::Admit(AdmitReason::Ungated)
        );
    }

    #[test]
    fn noise_is_no_change_and_a_person_is() {
        let (width, height) = (320_u32, 240_u32);
        let scene = |noise: u8, person: bool| {
            let pixels: Vec<u8> = (0..width * height)
                .flat_map(|i| {
                    let (x, y) = (i % width, i / width);
                    let dark = person && (100..140).contains(&x) && (80..200).contains(&y);
                    [if dark {
                        30
                    } else {
                        120 + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % noise.max(1)
                    }; 3]
                })
                .collect();
            Thumbnail::of_rgb(width, height, &pixels).expect("the pixels fill the sides")
        };
        assert_eq!(scene(1, false).changed_share(&scene(12, false)), 0.0);
        assert!(
            (scene(1, false).changed_share(&scene(12, true)) - 40.0 * 120.0 / (320.0 * 240.0))
                .abs()
                < 0.01
        );
    }

    #[test]
    fn wrong_pixels_are_named() {
        let error = Thumbnail::of_rgb(4, 4, &[0; 47]).expect_err("one byte short");
        insta::assert_snapshot!(error, @"frame of 4x4 RGB: expected both sides above zero and 48 bytes, got 47");
        assert!(Thumbnail::of_rgb(0, 4, &[]).is_err());
    }

    proptest! {
        /// Whatever the scene does, it is asked about at least every `max_age` (and one frame).
        #[test]
        fn never_silent_for_longer_than_max_age(lights in prop::collection::vec(0_usize..200, 1..60), max_age in 1_u64..20) {
            let mut gate = gate(0.5, max_age);
            let mut last = 0;
            for (second, bright) in (0_u64..).zip(lights) {
                if let Decision::Admit(_) = gate.admit(lit(bright), Duration::from_secs(second)) {
                    last = second;
                }
                prop_assert!(second - last < max_age);
            }
        }

        #[test]
        fn a_frame_equals_itself(pixels in prop::collection::vec(any::<u8>(), 48)) {
            let thumbnail = Thumbnail::of_rgb(4, 4, &pixels).expect("48 bytes");
            prop_assert_eq!(thumbnail.changed_share(&thumbnail), 0.0);
        }
    }
}
