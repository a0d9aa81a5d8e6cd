//! Events that will never be published, declared so that a subscriber does not take them for lost
//! ones. Pure.

use serde::Serialize;

use crate::deliver::payload::GapPayload;

/// Why events will never be published. The codes are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// The outbox was full.
    Size,
    /// The broker does not take them.
    Refused,
    /// The outbox could not keep them.
    Lost,
}

/// A range of events, some or all of which will never be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The first sequence number.
    pub from_seq: u64,
    /// The last sequence number.
    pub to_seq: u64,
    /// How many events of the range were given up.
    pub count: u64,
    /// Why; of a gap that was merged with others, why its first event was given up.
    pub reason: GapReason,
}

impl Gap {
    /// The gap's JSON.
    pub fn to_json(&self, epoch: u64) -> Vec<u8> {
        GapPayload {
            epoch,
            from_seq: self.from_seq,
            to_seq: self.to_seq,
            reason: self.reason,
            count: self.count,
        }
        .to_json()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json() {
        let gap = Gap {
            from_seq: 3,
            to_seq: 9,
            count: 7,
            reason: GapReason::Size,
        };
        insta::assert_snapshot!(String::from_utf8(gap.to_json(255)).expect("JSON is UTF-8"), @r#"{"epoch":"00000000000000ff","from_seq":3,"to_seq":9,"reason":"size","count":7}"#);
    }
}
