#![allow(clippy::unwrap_used)]

use super::*;

fn report(precision: Precision, decoder_cosine: f64) -> VerificationReport {
    let distance = |cosine| Distance {
        values: 4096,
        error_max: 2.5e-6,
        error_mean: 3e-7,
        error_relative: 2e-7,
        cosine,
    };
    VerificationReport::new(
        ("gate-model", precision),
        true,
        Backend {
            name: "tract".into(),
            execution_provider: "tract".into(),
        },
        FileComparison {
            compared: 7,
            differ: Vec::new(),
        },
        WeightComparison {
            tensors: 471,
            differ: Vec::new(),
        },
        Graphs {
            vision_encoder: distance(1.0),
            embed_tokens: distance(1.0),
            decoder_model_merged: distance(decoder_cosine),
        },
        Steps {
            count: 60,
            top1_agreement: 1.0,
            kl_mean: 4e-9,
            kl_max: 1e-8,
        },
        Answers {
            asked: 1,
            equal: 1,
            list: vec![Answer {
                probe: "text".into(),
                text: "two".into(),
                tokens: 2,
                is_equal: true,
                first_difference: None,
            }],
        },
    )
}

#[test]
fn people_read_a_table() {
    insta::assert_snapshot!(report(Precision::Fp32, 0.9999), @r#"
    gate-model (fp32) on tract (tract)

      files that differ                                0  at most 0         pass
      weights that differ                              0  at most 0         pass
      vision_encoder cosine                            1  at least 0.99999  pass
      vision_encoder relative error              2.00e-7  at most 1.00e-4   pass
      embed_tokens cosine                              1  at least 0.99999  pass
      embed_tokens relative error                2.00e-7  at most 1.00e-4   pass
      decoder_model_merged cosine              0.9999000  at least 0.99999  FAIL
      decoder_model_merged relative error        2.00e-7  at most 1.00e-4   pass
      top-1 agreement                                  1  at least 1        pass
      mean KL divergence                         4.00e-9  at most 1.00e-6   pass
      equal answers                                    1  at least 1        pass

    1 of 1 answers are the reference's, 60 tokens in total

    FAIL
    "#);
}

#[test]
fn differences_are_listed() {
    let mut report = report(Precision::Fp16, 1.0);
    report.source_is_the_same = false;
    report.files.differ.push("tokenizer.json".into());
    report.weights.differ = (0..12)
        .map(|layer| WeightDifference {
            name: format!("layers.{layer}.norm"),
            diagnostic: "2 of 576 values are not the checkpoint's".into(),
        })
        .collect();
    report.answers = Answers {
        asked: 1,
        equal: 0,
        list: vec![Answer {
            probe: "text".into(),
            text: "two".into(),
            tokens: 2,
            is_equal: false,
            first_difference: Some(1),
        }],
    };
    insta::assert_snapshot!(report, @r#"
    gate-model (fp16) on tract (tract)
    the checkpoint's weight files are not those that the bundle was made from

      files that differ                                0  at most 0         pass
      weights that differ                              0  at most 0         pass
      vision_encoder cosine                            1  at least 0.9999   pass
      vision_encoder relative error              2.00e-7                    not gated
      embed_tokens cosine                              1  at least 0.9999   pass
      embed_tokens relative error                2.00e-7                    not gated
      decoder_model_merged cosine                      1  at least 0.9999   pass
      decoder_model_merged relative error        2.00e-7                    not gated
      top-1 agreement                                  1                    not gated
      mean KL divergence                         4.00e-9                    not gated
      equal answers                                    1                    not gated

    0 of 1 answers are the reference's, 60 tokens in total
      text: differs from token 1 on: "two"
      tokenizer.json differs from the checkpoint's
      layers.0.norm: 2 of 576 values are not the checkpoint's
      layers.1.norm: 2 of 576 values are not the checkpoint's
      layers.2.norm: 2 of 576 values are not the checkpoint's
      layers.3.norm: 2 of 576 values are not the checkpoint's
      layers.4.norm: 2 of 576 values are not the checkpoint's
      layers.5.norm: 2 of 576 values are not the checkpoint's
      layers.6.norm: 2 of 576 values are not the checkpoint's
      layers.7.norm: 2 of 576 values are not the checkpoint's
      layers.8.norm: 2 of 576 values are not the checkpoint's
      layers.9.norm: 2 of 576 values are not the checkpoint's
      … and 2 more weights

    pass
    "#);
}

#[test]
fn programs_read_json() {
    insta::assert_snapshot!(report(Precision::Int8, 0.98).to_json(), @r#"
    {
      "verdict": "pass",
      "name": "gate-model",
      "precision": "int8",
      "source_is_the_same": true,
      "backend": {
        "name": "tract",
        "execution_provider": "tract"
      },
      "gates": [
        {
          "name": "files that differ",
          "value": 0.0,
          "limit": {
            "at_most": 0.0
          },
          "outcome": "pass"
        },
        {
          "name": "weights that differ",
          "value": 0.0,
          "limit": {
            "at_most": 0.0
          },
          "outcome": "pass"
        },
        {
          "name": "vision_encoder cosine",
          "value": 1.0,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "vision_encoder relative error",
          "value": 2e-7,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "embed_tokens cosine",
          "value": 1.0,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "embed_tokens relative error",
          "value": 2e-7,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "decoder_model_merged cosine",
          "value": 0.98,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "decoder_model_merged relative error",
          "value": 2e-7,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "top-1 agreement",
          "value": 1.0,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "mean KL divergence",
          "value": 4e-9,
          "limit": null,
          "outcome": "not_gated"
        },
        {
          "name": "equal answers",
          "value": 1.0,
          "limit": null,
          "outcome": "not_gated"
        }
      ],
      "files": {
        "compared": 7,
        "differ": []
      },
      "weights": {
        "tensors": 471,
        "differ": []
      },
      "graphs": {
        "vision_encoder": {
          "values": 4096,
          "error_max": 2.5e-6,
          "error_mean": 3e-7,
          "error_relative": 2e-7,
          "cosine": 1.0
        },
        "embed_tokens": {
          "values": 4096,
          "error_max": 2.5e-6,
          "error_mean": 3e-7,
          "error_relative": 2e-7,
          "cosine": 1.0
        },
        "decoder_model_merged": {
          "values": 4096,
          "error_max": 2.5e-6,
          "error_mean": 3e-7,
          "error_relative": 2e-7,
          "cosine": 0.98
        }
      },
      "steps": {
        "count": 60,
        "top1_agreement": 1.0,
        "kl_mean": 4e-9,
        "kl_max": 1e-8
      },
      "answers": {
        "asked": 1,
        "equal": 1,
        "list": [
          {
            "probe": "text",
            "text": "two",
            "tokens": 2,
            "is_equal": true,
            "first_difference": null
          }
        ]
      }
    }
    "#);
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
fn nan_fails_every_limit() {
    for limit in [Limit::AtLeast(0.5), Limit::AtMost(0.5)] {
        assert_eq!(Gate::new("x", f64::NAN, Some(limit)).outcome, Outcome::Fail);
    }
}
