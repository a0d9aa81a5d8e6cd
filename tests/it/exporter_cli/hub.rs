//! SOURCE as a hub id, against a hub on loopback.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use tests::hub_server::{COMMIT, Fault, HubServer, ID};
use tests::synth::Synthetic;

use super::{Bench, Ran, edit, files, unhashed};

const WEIGHTS: &str = "model.safetensors";

/// A checkpoint on a test hub, and an empty cache.
struct Hub {
    bench: Bench,
    server: HubServer,
    /// Timeout in seconds: short where no data is the fault, and longer than a busy machine takes
    /// where it is not.
    timeout: &'static str,
}

impl Hub {
    fn new(
        synthetic: Synthetic,
        token: Option<&'static str>,
        fault: Option<(&'static str, Fault)>,
    ) -> Self {
        let bench = Bench::new();
        // Named differently from the model, so a name can only come from the id.
        let source = bench.checkpoint("other", synthetic);
        let timeout = if matches!(fault, Some((_, Fault::Hang | Fault::Stall))) {
            "1"
        } else {
            "60"
        };
        let server = HubServer::start(&source, token, fault);
        Hub {
            bench,
            server,
            timeout,
        }
    }

    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        let own = [
            ("HF_ENDPOINT", self.server.endpoint.as_str()),
            ("HF_HUB_DOWNLOAD_TIMEOUT", self.timeout),
        ];
        let mut ran = self.bench.run_with(args, &[&own, variables].concat());
        ran.stderr = ran
            .stderr
            .replace(&self.server.endpoint, "HUB")
            .replace(&self.server.files, "FILES");
        ran
    }

    fn snapshot(&self) -> PathBuf {
        self.bench
            .path(&format!("cache/models--tester--tiny/snapshots/{COMMIT}"))
    }

    /// The error of an export that cannot fetch its source; it may leave only complete files in the
    /// cache.
    #[track_caller]
    fn refusal(&self, code: i32) -> String {
        let error = self.run(&["export", ID, "bundle"], &[]).refused(code);
        let left = self.bench.left();
        assert!(
            !self.bench.path("bundle").exists()
                && !left.iter().any(|file| file.ends_with("incomplete")),
            "{left:?}"
        );
        assert!(!self.snapshot().join(WEIGHTS).exists());
        error
    }
}

#[test]
fn an_export_by_id_is_that_of_the_folder() {
    let hub = Hub::new(Synthetic::micro(), None, None);
    fs::rename(hub.bench.path("other"), hub.bench.path("tiny")).unwrap();
    let server = HubServer::start(&hub.bench.path("tiny"), None, None);
    let at = [("HF_ENDPOINT", server.endpoint.as_str())];
    hub.bench
        .run(&["export", "tiny", "by-folder", "--precision", "fp16"])
        .done();
    hub.run(&["export", ID, "by-id", "--precision", "fp16"], &at)
        .done();
    assert!(
        files(&hub.bench.path("by-folder")) == files(&hub.bench.path("by-id")),
        "byte for byte, including the report"
    );

    // What was fetched is the checkpoint, and is not fetched again.
    let asked = server.asked();
    assert_eq!(
        asked,
        [
            "config.json",
            "tokenizer.json",
            "generation_config.json",
            "preprocessor_config.json",
            "processor_config.json",
            WEIGHTS
        ]
    );
    assert!(files(&hub.snapshot()) == files(&hub.bench.path("tiny")));
    let ran = hub
        .run(
            &[
                "verify",
                "by-id",
                "--reference",
                ID,
                "--revision",
                "refs/pr/1",
                "--json",
            ],
            &at,
        )
        .done();
    assert_eq!(ran.json()["verdict"], "pass");
    let ran = hub
        .run(&["inspect", ID, "--revision", COMMIT, "--json"], &at)
        .done();
    assert_eq!(
        (&ran.json()["kind"], &ran.json()["name"]),
        (&json!("checkpoint"), &json!("tiny"))
    );
    assert_eq!(server.asked(), asked);
}

#[test]
fn shards_are_fetched_as_the_index_lists_them() {
    let hub = Hub::new(Synthetic::micro().shards(3), None, None);
    let ran = hub.run(&["inspect", ID], &[("RUST_LOG", "info")]).done();
    assert_eq!(ran.stdout.lines().next(), Some("checkpoint tiny (smolvlm)"));
    let fetched: Vec<&str> = ran
        .stderr
        .lines()
        .filter_map(|line| line.split_once("fetching "))
        .map(|(_, what)| what)
        .collect();
    insta::assert_snapshot!(fetched.join("\n"), @r"
    tester/tiny at 7f1ad0c4e2b8: config.json
    tester/tiny at 7f1ad0c4e2b8: tokenizer.json, 0.1 MB
    tester/tiny at 7f1ad0c4e2b8: generation_config.json
    tester/tiny at 7f1ad0c4e2b8: preprocessor_config.json
    tester/tiny at 7f1ad0c4e2b8: processor_config.json
    tester/tiny at 7f1ad0c4e2b8: model.safetensors.index.json
    tester/tiny at 7f1ad0c4e2b8: model-00001-of-00003.safetensors, 3.9 MB
    tester/tiny at 7f1ad0c4e2b8: model-00002-of-00003.safetensors, 0.9 MB
    tester/tiny at 7f1ad0c4e2b8: model-00003-of-00003.safetensors, 2.4 MB
    ");
}

#[test]
fn a_token_is_sent_to_the_hub_only() {
    let hub = Hub::new(Synthetic::micro(), Some("hf_secret"), None);
    insta::assert_snapshot!(hub.refusal(64), @"egret-export: tester/tiny: no such folder, and HUB answers 401: it has no model of that name, or a private or gated one; check the spelling, or set HF_TOKEN to the token of an account that may read it");
    insta::assert_snapshot!(hub.run(&["inspect", ID], &[("HF_TOKEN", "hf_wrong")]).refused(64), @"egret-export: tester/tiny: no such folder, and HUB answers 401: it has no model of that name, or a private or gated one; check the spelling, or request access for the account of HF_TOKEN");
    hub.run(&["inspect", ID], &[("HF_TOKEN", "hf_secret")])
        .done();
    assert!(!hub.server.leaked());
}

#[test]
fn what_the_hub_does_not_have_is_reported() {
    let hub = Hub::new(Synthetic::micro(), None, None);
    let refusal = |args: &[&str]| hub.run(args, &[]).refused(64);
    insta::assert_snapshot!(refusal(&["export", "tester/typo", "bundle"]), @r#"egret-export: tester/typo: no such folder, and no model of that name with a revision "main" on HUB; check the spelling, or give --revision"#);
    insta::assert_snapshot!(refusal(&["export", ID, "bundle", "--revision", "v9"]), @r#"egret-export: tester/tiny: no such folder, and no model of that name with a revision "v9" on HUB; check the spelling, or give --revision"#);
    fs::remove_file(hub.bench.path("other/tokenizer.json")).unwrap();
    insta::assert_snapshot!(refusal(&["export", ID, "bundle"]), @"egret-export: tester/tiny at main: no tokenizer.json, expected a checkpoint as save_pretrained writes it, with safetensors; check --revision");
    assert!(
        !hub.bench.path("cache/models--tester--tiny").exists(),
        "nothing is fetched of a model that is not a checkpoint"
    );
}

#[test]
fn a_missing_shard_is_reported_before_the_others_are_fetched() {
    let hub = Hub::new(Synthetic::micro().shards(2), None, None);
    fs::remove_file(hub.bench.path("other/model-00002-of-00002.safetensors")).unwrap();
    insta::assert_snapshot!(hub.refusal(64), @"egret-export: tester/tiny at main: no model-00002-of-00002.safetensors, expected a checkpoint as save_pretrained writes it, with safetensors; check --revision");
    edit(
        &hub.bench.path("other/model.safetensors.index.json"),
        |index| index["weight_map"]["lm_head.weight"] = json!("../../x.safetensors"),
    );
    fs::remove_dir_all(hub.bench.path("cache")).unwrap();
    insta::assert_snapshot!(hub.refusal(64), @r#"egret-export: …/cache/models--tester--tiny/snapshots/7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8/model.safetensors.index.json: shard "../../x.safetensors" is outside the checkpoint folder; expected a file beside the index"#);
    assert!(
        !hub.server
            .asked()
            .iter()
            .any(|file| file.ends_with(".safetensors"))
    );
}

#[test]
fn a_folder_takes_precedence_over_an_id() {
    let hub = Hub::new(Synthetic::micro(), None, None);
    fs::create_dir(hub.bench.path("tester")).unwrap();
    fs::rename(hub.bench.path("other"), hub.bench.path(ID)).unwrap();
    hub.run(&["inspect", ID], &[]).done();
    assert_eq!(hub.server.asked(), [""; 0]);
}

#[test]
fn temporary_errors_are_retried() {
    let hub = Hub::new(
        Synthetic::micro(),
        None,
        Some((WEIGHTS, Fault::Status(503, 2))),
    );
    hub.run(&["inspect", ID], &[]).done();
    assert_eq!(
        hub.server
            .asked()
            .iter()
            .filter(|file| *file == WEIGHTS)
            .count(),
        3
    );
}

#[test]
fn lasting_errors_are_reported_and_leave_no_partial_file() {
    let refusal = |fault| Hub::new(Synthetic::micro(), None, Some((WEIGHTS, fault))).refusal(74);
    insta::assert_snapshot!(unhashed(&refusal(Fault::Damaged)), @"egret-export: HUB/tester/tiny/resolve/7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8/model.safetensors: sha256 is SHA256, expected SHA256; it was damaged or replaced in transit: try again, or without a mirror");
    std::thread::scope(|scope| {
        let faults = [Fault::Status(500, 9), Fault::Cut, Fault::Hang, Fault::Stall]
            .map(|fault| scope.spawn(move || refusal(fault)));
        let error = faults.map(|fault| fault.join().unwrap()).join("\n");
        insta::assert_snapshot!(error, @r"
        egret-export: HUB/tester/tiny/resolve/7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8/model.safetensors: HTTP status 500; try again later, or set HF_ENDPOINT to another hub
        egret-export: HUB/tester/tiny/resolve/7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8/model.safetensors: connection lost: end of file before message length reached; check that this box can reach it (HF_ENDPOINT, HTTPS_PROXY), and try again
        egret-export: FILES/model.safetensors: no data for 1 s; try again, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds
        egret-export: HUB/tester/tiny/resolve/7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8/model.safetensors: no data for 1 s; try again, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds
        ");
    });
}

#[test]
fn a_hub_that_cannot_be_reached_is_reported() {
    let hub = Hub::new(Synthetic::micro(), None, None);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let error = hub
        .run(&["inspect", ID], &[("HF_ENDPOINT", &endpoint)])
        .refused(74);
    insta::assert_snapshot!(error.replace(&endpoint, "CLOSED"), @"egret-export: CLOSED/api/models/tester/tiny/revision/main: cannot connect: Connection refused (os error 111); check that this box can reach it (HF_ENDPOINT, HTTPS_PROXY), and try again");
    insta::assert_snapshot!(hub.run(&["inspect", ID], &[("HF_ENDPOINT", "hub.example")]).refused(64), @r#"egret-export: HF_ENDPOINT is "hub.example", expected a URL such as https://huggingface.co"#);
    fs::write(hub.bench.path("file"), "").unwrap();
    insta::assert_snapshot!(hub.run(&["inspect", ID], &[("HF_HUB_CACHE", "file")]).refused(74), @"egret-export: file/.locks/models--tester--tiny/egret-export.lock: cannot be written; set HF_HUB_CACHE to a folder with room for the model: Not a directory (os error 20)");
}
