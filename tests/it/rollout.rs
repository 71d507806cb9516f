//! What `deploy/kubernetes.yaml` promises: a context can go on after a rollout or a lost node. The
//! manifest's own environment, volumes and configuration, and the image's own command line, start a sidecar;
//! only the paths lead into a directory of the test's.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::support::binary::Binary;
use crate::support::{Place, codex_path, make_repository, prompt, with_options, within};
use codex_sidecar::pb;

/// The environment of its tools is made anew on a fresh machine, through a package index.
const LIMIT: Duration = Duration::from_secs(600);

/// The parts of the manifest that make a pod of the sidecar.
#[derive(Debug)]
struct Pod {
    spec: Value,
    sidecar: Value,
    documents: Vec<Value>,
    /// Where the node keeps the volumes of pods.
    node: PathBuf,
    /// What the image starts, after the sidecar's own name.
    arguments: Vec<String>,
}

impl Pod {
    async fn of_the_manifest(node: PathBuf) -> Pod {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut making = Command::new("python3");
        making.args(["tests/python/venv.py", "target/deploy-venv", "deploy/requirements.txt"]);
        let python = said(making.current_dir(root)).await;
        let print = "import json, sys, yaml\n\
                     print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
        let mut printing = Command::new(python.trim());
        printing.args(["-c", print, "deploy/kubernetes.yaml"]).current_dir(root);
        let documents: Vec<Value> = serde_json::from_str(&said(&mut printing).await).unwrap();
        let deployment = of_kind(&documents, "Deployment");
        let spec = deployment["spec"]["template"]["spec"].clone();
        let containers = spec["initContainers"].as_array().unwrap();
        let sidecar = containers.iter().find(|it| it["name"] == "codex-sidecar").unwrap().clone();
        let image = std::fs::read_to_string(root.join("deploy/Containerfile")).unwrap();
        let entrypoint = image.lines().find_map(|line| line.strip_prefix("ENTRYPOINT ")).unwrap();
        let entrypoint: Vec<String> = serde_json::from_str(entrypoint).unwrap();
        let started = sidecar["command"].as_array().unwrap().last().unwrap().as_str().unwrap();
        let images = format!("exec {}", entrypoint.join(" "));
        assert!(
            started.ends_with(&images) && sidecar["args"].is_null(),
            "not the image's: {sidecar}"
        );
        let own = entrypoint.iter().position(|word| word == "codex-sidecar").unwrap();
        let arguments = entrypoint[own + 1..].to_vec();
        Pod { spec, sidecar, documents, node, arguments }
    }

    /// The directory of a volume. That of a claim is there as long as the claim, all others are the pod's.
    fn volume(&self, name: &str) -> PathBuf {
        let volumes = self.spec["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|it| it["name"] == name).unwrap();
        let claim = &volume["persistentVolumeClaim"]["claimName"];
        match claim.as_str() {
            Some(claim) => self.node.join("claims").join(claim),
            None => self.node.join("pod").join(name),
        }
    }

    /// A new pod: its own volumes are empty.
    fn schedule(&self) {
        let _ = std::fs::remove_dir_all(self.node.join("pod"));
        for volume in self.spec["volumes"].as_array().unwrap() {
            let directory = self.volume(volume["name"].as_str().unwrap());
            std::fs::create_dir_all(&directory).unwrap();
            if let Some(map) = volume["configMap"]["name"].as_str() {
                let is_it =
                    |it: &&Value| it["kind"] == "ConfigMap" && it["metadata"]["name"] == map;
                let map = self.documents.iter().find(is_it).expect("a ConfigMap");
                for (name, text) in map["data"].as_object().unwrap() {
                    let text = self.with_our_user(text.as_str().unwrap());
                    std::fs::write(directory.join(name), text).unwrap();
                }
            }
        }
        // As the first init container does.
        std::fs::create_dir_all(self.host_path("/run/codex-sidecar").unwrap()).unwrap();
        make_repository(&self.host_path("/workspace/repository").unwrap());
    }

    /// The configuration, with this test as the one that may call.
    fn with_our_user(&self, text: &str) -> String {
        let caller = &self.spec["containers"][0]["securityContext"]["runAsUser"];
        let ours = rustix::process::geteuid().as_raw();
        text.replace(&format!("[{caller}]"), &format!("[{ours}]"))
    }

    /// Where a path of the container is on the node; none for what the image has.
    fn host_path(&self, path: &str) -> Option<PathBuf> {
        self.sidecar["volumeMounts"].as_array().unwrap().iter().find_map(|mount| {
            let below = Path::new(path).strip_prefix(mount["mountPath"].as_str()?).ok()?;
            let within = mount["subPath"].as_str().unwrap_or_default();
            Some(self.volume(mount["name"].as_str()?).join(within).join(below))
        })
    }

    fn variables(&self) -> Vec<(String, String)> {
        let variables = self.sidecar["env"].as_array().unwrap().iter();
        variables
            .map(|variable| {
                let name = variable["name"].as_str().unwrap();
                let value = variable["value"].as_str().unwrap_or("a-key-of-a-secret");
                let value = match (name, self.host_path(value)) {
                    // Of the image: this machine has another one.
                    ("CODEX_PATH", _) => codex_path().display().to_string(),
                    ("CODEX_SIDECAR_LISTEN", _) => {
                        let path = self.host_path(value.strip_prefix("unix:").unwrap());
                        format!("unix:{}", path.unwrap().display())
                    }
                    // Any port: others test beside.
                    ("CODEX_SIDECAR_HEALTH_LISTEN", _) => {
                        let (host, _) = value.rsplit_once(':').unwrap();
                        format!("{host}:0")
                    }
                    (_, Some(path)) => path.display().to_string(),
                    _ => value.to_owned(),
                };
                (name.to_owned(), value)
            })
            .collect()
    }

    /// Its container as the kubelet starts it, with the offline model for the real one.
    async fn start(&self) -> Binary {
        let sidecar = Binary::cold(Place::new(), |command| {
            let mut own = Command::new(command.as_std().get_program());
            own.env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap())
                .env("HOME", self.host_path("/tmp").unwrap())
                .envs(self.variables())
                .env("CODEX_SIDECAR_OFFLINE_MODEL", "true")
                .args(&self.arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true);
            *command = own;
        })
        .await;
        sidecar.ready().await;
        sidecar
    }

    /// Ends it as the kubelet does: SIGTERM, and the time that the manifest gives it.
    async fn stop(&self, mut sidecar: Binary) {
        let grace = self.spec["terminationGracePeriodSeconds"].as_u64().unwrap();
        sidecar.signal(Signal::TERM);
        let status = sidecar.exited(Duration::from_secs(grace)).await;
        assert!(status.success(), "{status}: {}", sidecar.log());
    }

    /// A turn as its orchestrator asks for it, by the container's paths.
    fn turn(&self, words: &str) -> pb::RunTurnRequest {
        let work = self.host_path("/workspace/repository").unwrap();
        with_options(prompt("ticket-4711", words), |options| {
            options.working_directory = Some(work.display().to_string());
        })
    }
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|document| document["kind"] == kind).expect(kind)
}

async fn said(command: &mut Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let output = within(LIMIT, &format!("{command:?}"), command.output()).await.unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_context_goes_on_after_a_rollout_and_after_a_lost_node_as_the_manifest_promises() {
    let place = Place::new();
    let pod = Pod::of_the_manifest(place.path().join("node")).await;
    pod.schedule();
    let sidecar = pod.start().await;
    let first = sidecar.run(pod.turn("one")).await;
    assert_eq!(first.origin(), pb::ThreadOrigin::New);

    // A rollout under a turn, which is allowed to finish.
    let mut running = sidecar.begin(pod.turn("[[wait 1s]] [[say two]]")).await;
    running.started().await;
    let (told, ()) = tokio::join!(running.rest(), pod.stop(sidecar));
    assert_eq!(told.final_response(), "two");
    pod.schedule();
    let sidecar = pod.start().await;
    let next = sidecar.run(pod.turn("three")).await;
    assert_eq!((next.thread_id(), next.origin()), (first.thread_id(), pb::ThreadOrigin::Resumed));
    assert_eq!(next.final_response(), "You said: three (user messages so far: 3)");
    let kept = sidecar.told_after(crate::support::attached::by_id(told.turn_id()), 0).await;
    assert_eq!(kept.last(), told.events.last());

    // The node goes, and with it what was not on the claim.
    sidecar.kill().await;
    pod.schedule();
    let sidecar = pod.start().await;
    let next = sidecar.run(pod.turn("four")).await;
    assert_eq!((next.thread_id(), next.origin()), (first.thread_id(), pb::ThreadOrigin::Resumed));
    assert_eq!(next.final_response(), "You said: four (user messages so far: 4)");
    pod.stop(sidecar).await;
}
