//! Events that will never be published, as subscribers are told.

use crate::deliver::event::epoch_hex;

/// A stretch of events that will never be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// First of them.
    pub from_seq: u64,
    /// Last of them.
    pub to_seq: u64,
    /// How many they are.
    pub count: u64,
    /// Why: `size` (the queue was full) or `refused` (the broker does not take them).
    pub reason: &'static str,
}

impl Gap {
    /// The gap's JSON.
    pub fn to_json(&self, epoch: u64) -> Vec<u8> {
        let Gap {
            from_seq,
            to_seq,
            count,
            reason,
        } = self;
        let epoch = epoch_hex(epoch);
        serde_json::json!({ "epoch": epoch, "from_seq": from_seq, "to_seq": to_seq, "reason": reason, "count": count })
            .to_string()
            .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap() {
        let gap = Gap {
            from_seq: 3,
            to_seq: 9,
            count: 7,
            reason: "size",
        };
        insta::assert_snapshot!(String::from_utf8(gap.to_json(255)).expect("json"), @r#"{"epoch":"00000000000000ff","from_seq":3,"to_seq":9,"reason":"size","count":7}"#);
    }
}
