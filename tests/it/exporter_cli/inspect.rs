//! `egret-export inspect`.

use serde_json::json;

use super::Bench;

#[test]
fn inspect_ends_with_one_line_of_json() {
    let bench = Bench::new();
    bench.tiny();
    bench
        .run(&["export", "tiny", "bundle", "--precision", "fp32"])
        .done();
    for (folder, kind) in [("tiny", "checkpoint"), ("bundle", "bundle")] {
        let ran = bench.run(&["inspect", folder, "--json"]).done();
        assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
        assert_eq!(
            (&ran.json()["kind"], &ran.json()["name"]),
            (&json!(kind), &json!("tiny"))
        );
        assert!(
            bench
                .run(&["inspect", folder])
                .done()
                .stdout
                .starts_with(&format!("{kind} tiny (smolvlm"))
        );
    }
}
