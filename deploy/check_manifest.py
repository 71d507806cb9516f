"""Checks deploy/kubernetes.yaml: against the schemas, and against the sidecar.

    check_manifest.py MANIFEST [BINARY]

The schemas (bundled in the kubernetes-validate package, strict: an unknown field is an
error) know what Kubernetes accepts. They don't know that a grace must be longer than the
drain it waits for, or that a mount needs its volume; that is checked here as well. With
BINARY, the sidecar itself is asked whether it takes the manifest's environment,
configuration file and the image's own probe.

A checker that never says no proves nothing: each rule is first shown a manifest with one
thing wrong, and must complain.
"""

import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import kubernetes_validate
import yaml

# The first release where a sidecar container needs no feature gate, and the newest that
# the package has.
VERSIONS = ["1.29", kubernetes_validate.latest_version()]
# What the sidecar needs after its drain to interrupt and kill what still runs.
AFTER_DRAIN_SECONDS = 10
SERVICE = "codex.sidecar.v1.CodexService"


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML where a key that stands twice is an error, as it is for the API server."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load(text: str) -> list:
    return [document for document in yaml.load_all(text, Loader=UniqueKeyLoader) if document]


def schema_faults(documents: list) -> list:
    faults = []
    for document in documents:
        name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                path = ".".join(str(part) for part in error.path)
                faults.append(f"{name} against {version}: {path}: {error.message}")
            except kubernetes_validate.SchemaNotFoundError as error:
                # The package's own command only warns of this, and passes.
                faults.append(f"{name}: {error.message}")
    return faults


def seconds(text: str) -> float:
    """A duration as the sidecar writes it (`500ms`, `30s`, `10m`)."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if text.endswith(unit) and text[: -len(unit)].isdigit():
            return int(text[: -len(unit)]) * factor
    raise ValueError(f"not one number with one unit: {text!r}")


class Pod:
    """The parts of the manifest that the rules speak of."""

    def __init__(self, documents: list) -> None:
        (self.deployment,) = [d for d in documents if d["kind"] == "Deployment"]
        self.named = {(d["kind"], d["metadata"]["name"]): d for d in documents}
        self.spec = self.deployment["spec"]["template"]["spec"]
        (self.directory,) = [c for c in self.spec["initContainers"] if c["name"] == "socket-directory"]
        (self.sidecar,) = [c for c in self.spec["initContainers"] if c["name"] == "codex-sidecar"]
        (self.orchestrator,) = self.spec["containers"]
        self.containers = [*self.spec["initContainers"], self.orchestrator]

    @staticmethod
    def env(container: dict) -> dict:
        return {entry["name"]: entry.get("value") for entry in container.get("env", [])}

    def ids(self, container: dict) -> tuple:
        """User and group of a container's process: its own word wins over the pod's."""
        said = {**self.spec["securityContext"], **container.get("securityContext", {})}
        return said.get("runAsUser"), said.get("runAsGroup")

    @staticmethod
    def mount(container: dict, path: str) -> dict:
        """The mount at just that path."""
        return next((m for m in container["volumeMounts"] if m["mountPath"] == path), {})

    def config_text(self) -> str:
        """The file that CODEX_SIDECAR_CONFIG names, through its mount and its volume."""
        path = pathlib.PurePosixPath(self.env(self.sidecar)["CODEX_SIDECAR_CONFIG"])
        (mount,) = [m for m in self.sidecar["volumeMounts"] if m["mountPath"] == str(path.parent)]
        (volume,) = [v for v in self.spec["volumes"] if v["name"] == mount["name"]]
        return self.named["ConfigMap", volume["configMap"]["name"]]["data"][path.name]


def rule_faults(documents: list) -> list:
    pod = Pod(documents)
    env = pod.env(pod.sidecar)
    faults = []

    def want(holds: bool, fault: str) -> None:
        if not holds:
            faults.append(fault)

    selector = pod.deployment["spec"]["selector"]["matchLabels"]
    labels = pod.deployment["spec"]["template"]["metadata"]["labels"]
    want(selector.items() <= labels.items(), "the Deployment does not select its own pods")

    want(pod.sidecar.get("restartPolicy") == "Always", "the sidecar is not a native one: restartPolicy is not Always")
    drain = seconds(env["CODEX_SIDECAR_DRAIN_GRACE"])
    grace = pod.spec["terminationGracePeriodSeconds"]
    want(grace >= drain + AFTER_DRAIN_SECONDS, f"the pod's grace of {grace} s is too short for a drain of {drain:.0f} s")

    want(pod.spec["securityContext"].get("runAsNonRoot") is True, "runAsNonRoot is missing")
    want(
        pod.spec["securityContext"].get("seccompProfile", {}).get("type") == "RuntimeDefault",
        "seccompProfile is not RuntimeDefault",
    )
    want(pod.spec.get("automountServiceAccountToken") is False, "commands would find a service account's token")
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    for container in pod.containers:
        name = container["name"]
        context = container.get("securityContext", {})
        want(context.get("readOnlyRootFilesystem") is True, f"{name}: the root is writable")
        want(context.get("allowPrivilegeEscalation") is False, f"{name}: may gain privileges")
        want(context.get("capabilities", {}).get("drop") == ["ALL"], f"{name}: keeps capabilities")
        for mount in container["volumeMounts"]:
            want(mount["name"] in volumes, f"{name}: no volume for the mount {mount['name']}")
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            want(("PersistentVolumeClaim", claim) in pod.named, f"no claim named {claim}")

    # A read-only root: whatever is written to needs a volume.
    mounts = {mount["mountPath"]: mount["name"] for mount in pod.sidecar["volumeMounts"]}
    for path in (env["CODEX_HOME"], "/tmp"):
        want(path in mounts, f"nothing writable at {path}")
    # What a rollout must find again: the threads, and what names them.
    for what, path in (("CODEX_HOME", env["CODEX_HOME"]), ("the state", env.get("CODEX_SIDECAR_STATE", env["CODEX_HOME"]))):
        homes = [name for mount, name in mounts.items() if pathlib.PurePosixPath(path).is_relative_to(mount)]
        want(
            any("persistentVolumeClaim" in volumes.get(name, {}) for name in homes),
            f"{what} is on no claim: a rollout would forget every context",
        )
    shared = {mount["mountPath"]: mount["name"] for mount in pod.orchestrator["volumeMounts"]}
    want(
        mounts.get("/workspace", "") == shared.get("/workspace"),
        "the containers do not share /workspace at the same path",
    )

    want(pod.env(pod.orchestrator).get("CODEX_SIDECAR_ADDR") == env["CODEX_SIDECAR_LISTEN"], "the orchestrator looks elsewhere")
    want("CODEX_API_KEY" in env and env["CODEX_API_KEY"] is None, "the key is not from a Secret")
    for probe, service in (("startupProbe", ""), ("livenessProbe", ""), ("readinessProbe", SERVICE)):
        asked = pod.sidecar.get(probe, {}).get("grpc", {})
        want(asked.get("service", "") == service and "port" in asked, f"{probe} does not ask for {service!r}")
        # The kubelet dials the pod's address.
        want(env["CODEX_SIDECAR_HEALTH_LISTEN"] == f"0.0.0.0:{asked.get('port')}", f"{probe} asks where nobody listens")
    command = pod.sidecar.get("command", [""])[-1]
    want(command.endswith(f"exec {entrypoint()}"), f"the sidecar is not started as the image starts it: {command!r}")
    faults += socket_faults(pod)
    return faults


def entrypoint() -> str:
    """What the image starts."""
    image = pathlib.Path(__file__).with_name("Containerfile").read_text(encoding="utf-8")
    (words,) = [line.removeprefix("ENTRYPOINT ") for line in image.splitlines() if line.startswith("ENTRYPOINT ")]
    return " ".join(json.loads(words))


def socket_faults(pod: Pod) -> list:
    """Two users in one group, and a socket that only these two can have to do with."""
    faults = []

    def want(holds: bool, fault: str) -> None:
        if not holds:
            faults.append(fault)

    (sidecar, group), (orchestrator, other_group) = pod.ids(pod.sidecar), pod.ids(pod.orchestrator)
    want(sidecar != orchestrator, "commands of a turn run as the orchestrator's user")
    want(None not in (sidecar, orchestrator) and 0 not in (sidecar, orchestrator), "who runs the containers is not said")
    want(group == other_group == pod.spec["securityContext"].get("fsGroup"), "the two users have no group in common")

    config = tomllib.loads(pod.config_text())
    want(config.get("unix_mode") == "0660", "unix_mode does not let just the group in")
    want(config.get("unix_allow_uids") == [orchestrator], "not just the orchestrator's user may call")

    scheme, _, path = pod.env(pod.sidecar)["CODEX_SIDECAR_LISTEN"].partition(":")
    want(scheme == "unix", "the sidecar listens where every command of a turn can call")
    directory = str(pathlib.PurePosixPath(path).parent)
    ours, theirs, whole = pod.mount(pod.sidecar, directory), pod.mount(pod.orchestrator, directory), pod.mount(pod.directory, directory)
    want(
        bool(ours.get("subPath")) and (ours["name"], ours["subPath"]) == (theirs.get("name"), theirs.get("subPath")),
        "the containers do not share the socket's directory",
    )
    want(theirs.get("readOnly") is True, "the orchestrator can put a socket of its own there")
    # Ids of the same user, or the sidecar can't write there; and the last digit is everybody else.
    made = ["install", "--directory", "--mode=2750", f"{directory}/{ours.get('subPath')}"]
    want(
        whole.get("name") == ours.get("name") and pod.directory.get("command") == made and pod.ids(pod.directory) == (sidecar, group),
        "the socket's directory is not made for the sidecar, or everybody may write to it",
    )
    started = [container["name"] for container in pod.spec["initContainers"]]
    want(started.index("socket-directory") < started.index("codex-sidecar"), "the socket's directory is made too late")
    return faults


def schema_mutants(documents: list):
    """Manifests with one thing that no Kubernetes accepts."""

    def mutant(what, change):
        changed = copy.deepcopy(documents)
        change(Pod(changed))
        return what, changed

    yield mutant("an unknown field of a container", lambda pod: pod.sidecar.update(restartPolice="Always"))
    yield mutant("an unknown field of the pod", lambda pod: pod.spec.update(terminationGracePeriod=1))
    yield mutant("a number as text", lambda pod: pod.sidecar["ports"][0].update(containerPort="50061"))
    yield mutant("a missing name", lambda pod: pod.sidecar.pop("name"))
    yield mutant("an unknown kind", lambda pod: pod.deployment.update(kind="Deploiment"))


def rule_mutants(documents: list):
    """Manifests that Kubernetes accepts and that would not work."""

    def mutant(what, change):
        changed = copy.deepcopy(documents)
        change(Pod(changed))
        return what, changed

    def set_env(pod, name, value):
        (entry,) = [e for e in pod.sidecar["env"] if e["name"] == name]
        entry["value"] = value

    def set_config(pod, before, after):
        data = pod.named["ConfigMap", "codex-sidecar"]["data"]
        data["config.toml"] = data["config.toml"].replace(before, after)

    def add_env(pod, name, value):
        pod.sidecar["env"].append({"name": name, "value": value})

    yield mutant("no restart policy", lambda pod: pod.sidecar.pop("restartPolicy"))
    yield mutant("a grace shorter than the drain", lambda pod: pod.spec.update(terminationGracePeriodSeconds=30))
    yield mutant("a drain longer than the grace", lambda pod: set_env(pod, "CODEX_SIDECAR_DRAIN_GRACE", "10m"))
    yield mutant("a volume that is not there", lambda pod: [pod.spec["volumes"].remove(it) for it in pod.spec["volumes"] if it["name"] == "workspace"])
    yield mutant("a writable root", lambda pod: pod.sidecar["securityContext"].pop("readOnlyRootFilesystem"))
    yield mutant("a key in the manifest", lambda pod: set_env(pod, "CODEX_API_KEY", "sk-oops"))
    yield mutant("another port", lambda pod: set_env(pod, "CODEX_SIDECAR_LISTEN", "127.0.0.1:1"))
    yield mutant("probes of another port", lambda pod: set_env(pod, "CODEX_SIDECAR_HEALTH_LISTEN", "0.0.0.0:1"))
    yield mutant("open to the cluster", lambda pod: set_env(pod, "CODEX_SIDECAR_LISTEN", "0.0.0.0:50061"))
    yield mutant("a state that a rollout forgets", lambda pod: add_env(pod, "CODEX_SIDECAR_STATE", "memory"))
    yield mutant("a state without its threads", lambda pod: add_env(pod, "CODEX_SIDECAR_STATE", "/tmp/state.redb"))
    yield mutant("threads on no claim", lambda pod: set_env(pod, "CODEX_HOME", "/workspace/codex"))
    for_both = lambda pod, value: [set_env(pod, "CODEX_SIDECAR_LISTEN", value), pod.orchestrator["env"][0].update(value=value)]
    yield mutant("open to the whole pod", lambda pod: for_both(pod, "127.0.0.1:50061"))
    yield mutant("a socket in a directory of everybody's", lambda pod: for_both(pod, "unix:/tmp/codex.sock"))
    yield mutant("another start", lambda pod: pod.sidecar.update(command=["codex-sidecar", "serve", "--insecure-listen"]))
    yield mutant("one user", lambda pod: pod.orchestrator["securityContext"].update(runAsUser=1000))
    yield mutant("two groups", lambda pod: pod.orchestrator["securityContext"].update(runAsGroup=1001))
    yield mutant("nobody's volumes", lambda pod: pod.spec["securityContext"].pop("fsGroup"))
    yield mutant("a directory open to all", lambda pod: pod.directory["command"].__setitem__(2, "--mode=2777"))
    yield mutant("a directory of the other one's", lambda pod: pod.directory["securityContext"].update(runAsUser=1001))
    yield mutant("a directory that is made too late", lambda pod: pod.spec["initContainers"].reverse())
    yield mutant("a directory that the other one writes to", lambda pod: pod.mount(pod.orchestrator, "/run/codex-sidecar").pop("readOnly"))
    yield mutant("another directory", lambda pod: pod.mount(pod.orchestrator, "/run/codex-sidecar").update(subPath="other"))
    for before, after in (('"0660"', '"0666"'), ("[1001]", "[1000, 1001]"), ("unix_allow_uids", "# unix_allow_uids")):
        yield mutant(f"{after} in its configuration", lambda pod, before=before, after=after: set_config(pod, before, after))
    yield mutant("no readiness", lambda pod: pod.sidecar["readinessProbe"]["grpc"].pop("service"))


def binary_faults(documents: list, binary: str) -> list:
    """Asks the sidecar itself: does it take what the manifest gives it?"""
    pod = Pod(documents)
    faults = []
    with tempfile.TemporaryDirectory(prefix="codex-sidecar-check-") as directory:
        config = pathlib.Path(directory) / "config.toml"
        config.write_text(pod.config_text(), encoding="utf-8")
        # Only the manifest's, and a HOME: nothing of this machine's shall help it.
        env = {name: value if value is not None else "not-a-key" for name, value in pod.env(pod.sidecar).items()}
        env.update(CODEX_SIDECAR_CONFIG=str(config), HOME=directory, PATH=os.environ["PATH"])

        def run(*arguments: str) -> subprocess.CompletedProcess:
            return subprocess.run(
                [binary, *arguments], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
            )

        printed = run("serve", "--print-config")
        if printed.returncode != 0:
            faults.append(f"the sidecar refuses the manifest's configuration:\n{printed.stderr}")
        # Its own words for it, so that an environment variable whose name is wrong, and
        # so is read by nobody, shows.
        for name in env.keys() - {"HOME", "PATH", "CODEX_SIDECAR_ADDR", "CODEX_SIDECAR_CONFIG", "CODEX_API_KEY"}:
            if name not in printed.stdout:
                faults.append(f"the sidecar took nothing from {name}:\n{printed.stdout}")
        if "not-a-key" in printed.stdout + printed.stderr:
            faults.append("the sidecar prints the key")

        config.write_text("no_such_setting = 1\n", encoding="utf-8")
        if run("serve", "--print-config").returncode == 0:
            faults.append("the sidecar takes a configuration with an unknown setting: this check proves nothing")

        # The image's own probe. Nobody listens: it must fail for that, and not for its command
        # line (2 is what a command line that it does not understand ends with).
        asked = run("health", "--addr", "127.0.0.1:1")
        if asked.returncode in (0, 2, 64):
            faults.append(f"`health` ended with {asked.returncode} where nobody listens: {asked.stderr}")
    return faults


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: check_manifest.py MANIFEST [BINARY]")
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    documents = load(text)
    faults = schema_faults(documents) or rule_faults(documents)
    if not faults and len(sys.argv) == 3:
        faults = binary_faults(documents, sys.argv[2])
    for fault in faults:
        print(f"kubernetes.yaml: {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)

    missed = [what for what, mutant in schema_mutants(documents) if not schema_faults(mutant)]
    missed += [what for what, mutant in rule_mutants(documents) if schema_faults(mutant) or not rule_faults(mutant)]
    try:
        load(text.replace("      terminationGracePeriodSeconds:", "      enableServiceLinks: true\n      terminationGracePeriodSeconds:"))
        missed.append("a key that stands twice")
    except yaml.constructor.ConstructorError:
        pass
    for what in missed:
        print(f"check_manifest.py: this was not noticed: {what}", file=sys.stderr)
    if missed:
        sys.exit(1)
    kinds = ", ".join(document["kind"] for document in documents)
    print(f"kubernetes.yaml: {kinds} hold against {' and '.join(VERSIONS)}, strictly; every planted fault was noticed")


if __name__ == "__main__":
    main()
