//! Whether a camera delivers frames.

use jiff::Timestamp;

/// Whether a camera delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CameraState {
    /// Frames come.
    Online,
    /// No frame came for longer than `stall-after`; it is opened again.
    Stalled,
    /// Not open; it is tried again.
    Offline,
    /// A folder or file was read to its end, or the agent stops.
    Ended,
}

impl CameraState {
    /// Every state.
    pub const ALL: [CameraState; 4] = [
        CameraState::Online,
        CameraState::Stalled,
        CameraState::Offline,
        CameraState::Ended,
    ];

    /// As published.
    pub fn as_str(self) -> &'static str {
        match self {
            CameraState::Online => "online",
            CameraState::Stalled => "stalled",
            CameraState::Offline => "offline",
            CameraState::Ended => "ended",
        }
    }

    /// Whether the camera shows nothing and is expected back.
    pub fn is_away(self) -> bool {
        matches!(self, CameraState::Stalled | CameraState::Offline)
    }
}

/// A camera's state, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CameraStatus {
    /// Whether it delivers.
    pub state: CameraState,
    /// Why, in words.
    pub reason: String,
    /// When it changed to this.
    pub since: Timestamp,
    /// How often it was online and went away, so that an absence between two looks is still seen.
    pub losses: u64,
}

impl CameraStatus {
    /// The status before the first attempt to open the camera.
    pub fn opening(since: Timestamp) -> Self {
        CameraStatus {
            state: CameraState::Offline,
            reason: "not open yet".into(),
            since,
            losses: 0,
        }
    }

    /// Changes to `state`; false when it was that already, for the same reason.
    pub fn change(&mut self, state: CameraState, reason: &str, now: Timestamp) -> bool {
        if self.state == state && self.reason == reason {
            return false;
        }
        let lost = self.state == CameraState::Online && state.is_away();
        *self = CameraStatus {
            state,
            reason: reason.to_owned(),
            since: now,
            losses: self.losses + u64::from(lost),
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_counted_once_and_the_same_state_is_no_change() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let mut status = CameraStatus::opening(at(0));
        assert!(status.change(CameraState::Online, "", at(1)));
        assert!(!status.change(CameraState::Online, "", at(2)));
        assert_eq!((status.since, status.losses), (at(1), 0));
        assert!(status.change(CameraState::Stalled, "no frame", at(3)));
        assert!(status.change(CameraState::Offline, "refused", at(4)));
        assert_eq!(status.losses, 1);
        assert!(status.change(CameraState::Online, "", at(5)));
        assert!(status.change(CameraState::Ended, "stopped", at(6)));
        assert_eq!(status.losses, 1, "an end is no loss");
    }
}
