#![allow(clippy::unwrap_used)]

use super::*;

fn report(precision: Precision, decoder_cosine: f64) -> VerificationReport {
    let distance = |cosine| Distance { values: 4096, error_max: 2.5e-6, error_mean: 3e-7, error_relative: 2e-7, cosine };
    VerificationReport::new(
        ("gate-model", precision),
        true,
        Backend { name: "tract".into(), execution_provider: "tract".into() },
        Files { compared: 7, differ: Vec::new() },
        Weights { tensors: 471, differ: Vec::new() },
        Graphs { vision_encoder: distance(1.0), embed_tokens: distance(1.0), decoder_model_merged: distance(decoder_cosine) },
        Steps { count: 60, top1_agreement: 1.0, kl_mean: 4e-9, kl_max: 1e-8 },
        Answers {
            asked: 1,
            equal: 1,
            list: vec![Answer { probe: "text".into(), text: "two".into(), tokens: 2, is_equal: true, first_difference: None }],
        },
    )
}

#[test]
fn people_read_a_table() {
    insta::assert_snapshot!(report(Precision::Fp32, 0.9999), @"");
}

#[test]
fn what_is_wrong_is_named() {
    let mut report = report(Precision::Fp16, 1.0);
    report.source_is_the_same = false;
    report.files.differ.push("tokenizer.json".into());
    report.weights.differ = (0..12)
        .map(|layer| WeightDifference { name: format!("layers.{layer}.norm"), problem: "2 of 576 values are not the checkpoint's".into() })
        .collect();
    report.answers = Answers {
        asked: 1,
        equal: 0,
        list: vec![Answer { probe: "text".into(), text: "two".into(), tokens: 2, is_equal: false, first_difference: Some(1) }],
    };
    insta::assert_snapshot!(report, @"");
}

#[test]
fn programs_read_json() {
    insta::assert_snapshot!(report(Precision::Int8, 0.98).to_json(), @"");
}

#[test]
fn a_gate_without_a_limit_cannot_fail_and_one_with_a_limit_can() {
    assert_eq!(report(Precision::Fp32, 0.99999).verdict(), Verdict::Pass);
    assert_eq!(report(Precision::Fp32, 0.99998).verdict(), Verdict::Fail);
    assert_eq!(report(Precision::Fp16, 0.99998).verdict(), Verdict::Pass);
    assert_eq!(report(Precision::Fp16, 0.9998).verdict(), Verdict::Fail);
    assert_eq!(report(Precision::Int8, 0.9).verdict(), Verdict::Pass);
}

#[test]
fn a_value_that_is_no_number_fails_every_limit() {
    for limit in [Limit::AtLeast(0.5), Limit::AtMost(0.5)] {
        assert_eq!(Gate::new("x", f64::NAN, Some(limit)).outcome, Outcome::Fail);
    }
}
