//! The demo's summary: what was kept, what was escalated, and the effect on accuracy and cost.
//! Pure.
//!
//! A *pair* is one admitted frame and one question. Three policies are compared over the labelled
//! pairs: what the router did, the box alone, and the pool for everything. Costs are in pool calls;
//! calls made after the replay, about the pairs that stayed local, count for *always pool* alone.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// One admitted frame and one question, with its answers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    /// The right answer, where the frame has a label for the question.
    pub(crate) label: Option<String>,
    /// The local answer.
    pub(crate) local: String,
    /// From the frame's admission to the local answer.
    pub(crate) local_latency: Duration,
    /// The deciding reason.
    pub(crate) reason: String,
    /// The pool's answer, when it was asked during the replay and answered.
    pub(crate) escalated: Option<Escalated>,
    /// Pool calls made for it during the replay, answered or not.
    pub(crate) pool_calls: u32,
    /// The pool's answer, when it was asked after the replay and answered.
    pub(crate) pool_afterwards: Option<String>,
}

/// A pool's answer during the replay.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Escalated {
    /// The pool's answer.
    pub(crate) answer: String,
    /// From the frame's admission to the pool's answer.
    pub(crate) latency: Duration,
}

/// Counts of the pipeline, besides the pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PipelineCounts {
    /// Frames the cameras delivered.
    pub(crate) frames: u64,
    /// Frames skipped by the gate, or superseded while the model was busy.
    pub(crate) frames_skipped: u64,
    /// `update` events.
    pub(crate) updates: u64,
    /// Events published.
    pub(crate) events_published: u64,
    /// Distinct (epoch, seq) that the demo's own subscriber saw.
    pub(crate) events_received: u64,
    /// Request bytes sent to pools during the replay.
    pub(crate) bytes_up: u64,
}

/// The contract line of `egret demo --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    frames: u64,
    frames_skipped: u64,
    answers: usize,
    answers_local: usize,
    answers_escalated: usize,
    reasons: BTreeMap<String, usize>,
    updates: u64,
    events_published: u64,
    events_received: u64,
    bytes_up: u64,
    cost: PoolCalls,
    accuracy: Accuracy,
    latency_ms: Latency,
    /// Of this process, without broker and worker; absent where the system does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_bytes: Option<u64>,
}

/// Pool calls under each policy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct PoolCalls {
    routed: f64,
    always_pool: f64,
    always_local: f64,
}

/// Share of labelled pairs answered right under each policy, 0..=1; `null` without any, and where
/// the pool did not answer every one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Accuracy {
    routed: Option<f64>,
    always_pool: Option<f64>,
    always_local: Option<f64>,
    n: usize,
}

/// Milliseconds from a frame's admission to its answer; `null` without any.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Latency {
    local_p50: Option<f64>,
    local_p95: Option<f64>,
    escalated_p50: Option<f64>,
    escalated_p95: Option<f64>,
}

impl Summary {
    /// Adds everything up.
    pub(crate) fn of(
        counts: PipelineCounts,
        pairs: &[Pair],
        peak_rss_bytes: Option<u64>,
    ) -> Summary {
        let mut reasons = BTreeMap::new();
        for pair in pairs {
            *reasons.entry(pair.reason.clone()).or_insert(0) += 1;
        }
        let escalated: Vec<&Escalated> = pairs
            .iter()
            .filter_map(|pair| pair.escalated.as_ref())
            .collect();
        let labelled: Vec<(&Pair, &str)> = pairs
            .iter()
            .filter_map(|pair| Some((pair, pair.label.as_deref()?)))
            .collect();
        let share = |answer: fn(&Pair) -> Option<&str>| {
            // An incomplete comparison would favour one policy.
            let right = labelled
                .iter()
                .map(|(pair, label)| answer(pair).map(|answer| answer == *label))
                .collect::<Option<Vec<bool>>>()?;
            (!right.is_empty())
                .then(|| right.iter().filter(|right| **right).count() as f64 / right.len() as f64)
        };
        Summary {
            frames: counts.frames,
            frames_skipped: counts.frames_skipped,
            answers: pairs.len(),
            answers_local: pairs.len() - escalated.len(),
            answers_escalated: escalated.len(),
            reasons,
            updates: counts.updates,
            events_published: counts.events_published,
            events_received: counts.events_received,
            bytes_up: counts.bytes_up,
            cost: PoolCalls {
                routed: f64::from(pairs.iter().map(|pair| pair.pool_calls).sum::<u32>()),
                // One call for every pair; where the router needed several, always-pool would have,
                // too.
                always_pool: f64::from(
                    pairs.iter().map(|pair| pair.pool_calls.max(1)).sum::<u32>(),
                ),
                always_local: 0.0,
            },
            accuracy: Accuracy {
                routed: share(|pair| Some(pair.routed())),
                always_pool: share(Pair::pool),
                always_local: share(|pair| Some(&pair.local)),
                n: labelled.len(),
            },
            latency_ms: Latency {
                local_p50: percentile_ms(pairs.iter().map(|pair| pair.local_latency), 0.50),
                local_p95: percentile_ms(pairs.iter().map(|pair| pair.local_latency), 0.95),
                escalated_p50: percentile_ms(escalated.iter().map(|answer| answer.latency), 0.50),
                escalated_p95: percentile_ms(escalated.iter().map(|answer| answer.latency), 0.95),
            },
            peak_rss_bytes,
        }
    }

    /// The summary as text.
    pub(crate) fn text(&self) -> String {
        let percent = |share: Option<f64>| {
            share.map_or("not known".into(), |share| {
                format!("{:.1} %", share * 100.0)
            })
        };
        let ms = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0} ms"));
        let reasons = self
            .reasons
            .iter()
            .map(|(code, n)| format!("{code} {n}"))
            .collect::<Vec<_>>()
            .join(", ");
        format!(
            "\
frames    {frames} seen, {skipped} skipped by the gate
answers   {answers}: {local} settled on the box, {escalated} by the pool ({reasons})
latency   box p50 {l50} p95 {l95}; pool p50 {e50} p95 {e95}
events    {published} published, {received} received, {updates} of them updates; {bytes} bytes sent to the pool

                 right answers   pool calls
routed           {routed:>13}   {cost_routed:>10}
always local     {always_local:>13}   {cost_local:>10}
always pool      {always_pool:>13}   {cost_pool:>10}
(over {n} labelled pairs of frame and question)",
            frames = self.frames,
            skipped = self.frames_skipped,
            answers = self.answers,
            local = self.answers_local,
            escalated = self.answers_escalated,
            l50 = ms(self.latency_ms.local_p50),
            l95 = ms(self.latency_ms.local_p95),
            e50 = ms(self.latency_ms.escalated_p50),
            e95 = ms(self.latency_ms.escalated_p95),
            published = self.events_published,
            received = self.events_received,
            updates = self.updates,
            bytes = self.bytes_up,
            routed = percent(self.accuracy.routed),
            always_local = percent(self.accuracy.always_local),
            always_pool = percent(self.accuracy.always_pool),
            cost_routed = self.cost.routed,
            cost_local = self.cost.always_local,
            cost_pool = self.cost.always_pool,
            n = self.accuracy.n,
        )
    }
}

impl Pair {
    /// The answer under the router's policy: an escalation without an answer keeps the local one.
    fn routed(&self) -> &str {
        self.escalated
            .as_ref()
            .map_or(&self.local, |escalated| &escalated.answer)
    }

    /// The pool's answer; `None` when it gave none.
    fn pool(&self) -> Option<&str> {
        self.escalated
            .as_ref()
            .map(|escalated| escalated.answer.as_str())
            .or(self.pool_afterwards.as_deref())
    }
}

/// Nearest-rank percentile in milliseconds; `share` is 0..=1.
fn percentile_ms(values: impl Iterator<Item = Duration>, share: f64) -> Option<f64> {
    let mut sorted: Vec<Duration> = values.collect();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .map(|value| (value.as_secs_f64() * 1e6).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(
        label: Option<&str>,
        local: &str,
        escalated: Option<&str>,
        afterwards: Option<&str>,
    ) -> Pair {
        Pair {
            label: label.map(str::to_owned),
            local: local.into(),
            local_latency: Duration::from_millis(10),
            reason: if escalated.is_some() {
                "LOW_CONFIDENCE"
            } else {
                "CONFIDENT"
            }
            .into(),
            escalated: escalated.map(|answer| Escalated {
                answer: answer.into(),
                latency: Duration::from_millis(30),
            }),
            pool_calls: u32::from(escalated.is_some()),
            pool_afterwards: afterwards.map(str::to_owned),
        }
    }

    #[test]
    fn three_policies_are_compared_over_the_labelled_pairs() {
        let failed = Pair {
            pool_calls: 2,
            reason: "DEADLINE".into(),
            ..pair(Some("yes"), "yes", None, Some("no"))
        };
        let pairs = [
            pair(Some("yes"), "yes", None, Some("yes")),
            pair(Some("yes"), "yes", None, Some("no")),
            pair(Some("no"), "yes", Some("no"), None),
            pair(None, "yes", Some("no"), None),
            failed,
        ];
        let summary = Summary::of(
            PipelineCounts {
                frames: 7,
                frames_skipped: 2,
                ..PipelineCounts::default()
            },
            &pairs,
            None,
        );
        insta::assert_json_snapshot!(summary, @r#"
        {
          "frames": 7,
          "frames_skipped": 2,
          "answers": 5,
          "answers_local": 3,
          "answers_escalated": 2,
          "reasons": {
            "CONFIDENT": 2,
            "DEADLINE": 1,
            "LOW_CONFIDENCE": 2
          },
          "updates": 0,
          "events_published": 0,
          "events_received": 0,
          "bytes_up": 0,
          "cost": {
            "routed": 4.0,
            "always_pool": 6.0,
            "always_local": 0.0
          },
          "accuracy": {
            "routed": 1.0,
            "always_pool": 0.5,
            "always_local": 0.75,
            "n": 4
          },
          "latency_ms": {
            "local_p50": 10.0,
            "local_p95": 10.0,
            "escalated_p50": 30.0,
            "escalated_p95": 30.0
          }
        }
        "#);
    }

    #[test]
    fn without_pairs_shares_are_unknown() {
        let summary = Summary::of(PipelineCounts::default(), &[], None);
        assert_eq!(summary.accuracy.routed, None);
        assert_eq!(summary.latency_ms.local_p95, None);
        assert!(summary.text().contains("not known"));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = |share| percentile_ms((1..=20).map(Duration::from_millis), share);
        assert_eq!(
            (values(0.5), values(0.95), values(1.0)),
            (Some(10.0), Some(19.0), Some(20.0))
        );
    }
}
