"""Starts what deploy/Containerfile and deploy/kubernetes.yaml describe.

    check_container.py BINARY

Without an engine nobody can build the image here, nor pull its bases. What can be tried
without is how the sidecar fares where the image puts it: in namespaces of its own, on a
read-only root made of this machine's /usr, with the image's user, variables and volumes,
nothing else to write to, and no network but loopback. First as the image alone, then as the
pod of the manifest, as the kubelet mounts it.

That takes root and the right to make namespaces. Where either is missing it is left out, the
last line says so, and the status is 0 all the same.
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile

import check_manifest
from check_containerfile import Image

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = 60


class Fault(Exception):
    """What did not hold."""


def call(*command) -> None:
    subprocess.run([str(word) for word in command], check=True, stdin=subprocess.DEVNULL)


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running


class Container:
    """A read-only root with the sidecar in it, and processes there."""

    def __init__(self, directory: pathlib.Path, image: Image, binary: str, codex: pathlib.Path) -> None:
        self.root, self.env, self.log = directory / "root", dict(image.env), directory / "log"
        self.root.mkdir(parents=True)
        call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self.root)
        for path in (pathlib.Path("/bin"), pathlib.Path("/sbin"), *pathlib.Path("/").glob("lib*"), pathlib.Path("/usr")):
            if path.is_symlink():
                self.at(path).symlink_to(os.readlink(path))
            elif path.is_dir():
                self.bind(path, path, read_only=True)
        # What this machine has of its own under /usr/local is not the image's.
        call("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", self.at("/usr/local"))
        for path in ("/etc", "/usr/local/bin", "/proc"):
            self.at(path).mkdir(exist_ok=True)
        for name in ("ld.so.cache", "nsswitch.conf", "hosts", "passwd", "group", "alternatives", "ssl"):
            path = pathlib.Path("/etc") / name
            if path.is_dir():
                shutil.copytree(path, self.at(path), symlinks=True, ignore=shutil.ignore_patterns("private"))
            elif path.exists():
                shutil.copy(path, self.at(path))
        shutil.copy(binary, self.at("/usr/local/bin/codex-sidecar"))
        self.bind(codex, "/opt/codex", read_only=True)
        self.bind("/dev", "/dev")
        call("mount", "-t", "proc", "proc", self.at("/proc"))

    def at(self, path) -> pathlib.Path:
        return self.root / str(path).lstrip("/")

    def bind(self, source, path, read_only: bool = False) -> None:
        if pathlib.Path(source).is_dir():
            self.at(path).mkdir(parents=True, exist_ok=True)
        call("mount", "--rbind", source, self.at(path))
        if read_only:
            call("mount", "-o", "remount,bind,ro", self.at(path))

    def seal(self) -> None:
        for path in ("/usr/local", "/"):
            call("mount", "-o", "remount,ro", self.at(path))

    def command(self, ids: tuple, words: list, workdir: str) -> list:
        uid, gid = ids
        rights = ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"]
        return [
            *("chroot", self.root, "setpriv", f"--reuid={uid}", f"--regid={gid}", *rights),
            *("env", f"--chdir={workdir}", *words),
        ]

    def variables(self) -> dict:
        return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **self.env}

    def start(self, ids: tuple, words: list, workdir: str = "/") -> subprocess.Popen:
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                self.command(ids, words, workdir), env=self.variables(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, ids: tuple, words: list, workdir: str = "/") -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(ids, words, workdir),
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def volume(directory: pathlib.Path, uid: int, gid: int, mode: int) -> pathlib.Path:
    directory.mkdir(parents=True)
    os.chown(directory, uid, gid)
    directory.chmod(mode)
    return directory


def without_tini(words: list) -> list:
    """This machine need not have it, and reaps by itself."""
    return [word.replace("/usr/bin/tini -- ", "") for word in words if word not in ("/usr/bin/tini", "--")]


def want(holds: bool, what: str, said: subprocess.CompletedProcess, container: Container) -> None:
    if not holds:
        raise Fault(f"{what}: status {said.returncode}\n{said.stdout}{said.stderr}\n-- the sidecar's log:\n{container.tail()}")


def ready(container: Container, ids: tuple, health: list) -> None:
    waiting = [*health, "--wait", f"{SECONDS - 5}s", "--service", check_manifest.SERVICE]
    said = container.run(ids, waiting)
    want(said.returncode == 0, "not ready for turns", said, container)


def turn(prompt: str) -> list:
    # The container is the sandbox, as in the manifest.
    freely = ["--sandbox", "danger-full-access", "--approval", "never", "--skip-git-repo-check"]
    return ["codex-sidecar", "run", "--context", "check", "--cd", "/workspace/repository", *freely, prompt]


def stopped(container: Container, sidecar: subprocess.Popen) -> None:
    sidecar.send_signal(signal.SIGTERM)
    status = sidecar.wait(SECONDS)
    if status != 0:
        raise Fault(f"SIGTERM ended it with {status}\n{container.tail()}")


def start_image(directory: pathlib.Path, image: Image, binary: str, codex: pathlib.Path) -> None:
    """The image alone, as `docker run --read-only` starts it."""
    container = Container(directory, image, binary, codex)
    ids = tuple(int(part) for part in image.user.split(":"))
    for number, path in enumerate(image.volumes):
        owner = image.directories.get(path, (0, 0, 0o1777))
        container.bind(volume(directory / f"volume-{number}", *owner), path)
    os.makedirs(container.at("/workspace/repository"))
    os.chown(container.at("/workspace/repository"), *ids)
    container.seal()
    serve = [*without_tini(json.loads(image.entrypoint)), "--offline-model"]
    health = json.loads(image.healthcheck)

    # Nothing that is started may need a shell: here there is none.
    shells = [path for name in ("sh", "bash", "dash") if (path := container.at(f"/usr/bin/{name}").resolve()).exists()]
    for shell in set(shells):
        call("mount", "--bind", "/dev/null", shell)
    none = container.run(ids, ["sh", "-c", "true"])
    want(none.returncode == 126, "a shell was there all the same", none, container)
    sidecar = container.start(ids, serve, image.workdir)
    ready(container, ids, health)
    said = container.run(ids, turn("Hello."))
    want(said.returncode == 0 and "You said: Hello." in said.stdout, "a turn without a shell", said, container)
    stopped(container, sidecar)
    for shell in set(shells):
        call("umount", shell)

    # Commands do need one. What they may write to is the volumes.
    sidecar = container.start(ids, serve, image.workdir)
    ready(container, ids, health)
    paths = [*image.volumes, "/", "/etc", "/usr", "/usr/local/bin", "/opt/codex", "/var", "/run"]
    tries = "; ".join(f"touch {path}/x 2>/dev/null && echo wrote:{path}." for path in paths)
    said = container.run(ids, turn(f"[[run id -u; {tries}; true]]"))
    wrote = set(re.findall(r"wrote:([\w/]+)\.$", said.stdout + said.stderr, re.M))
    want(said.returncode == 0 and wrote == set(image.volumes), f"a command wrote to {sorted(wrote)}", said, container)
    want(re.search(rf"^\s*{ids[0]}$", said.stdout + said.stderr, re.M) is not None, "a command as another user", said, container)
    stopped(container, sidecar)

    # A check that can't fail proves nothing: without its volume it is not ready, and says why.
    container.env["CODEX_HOME"] = "/usr/local"
    sidecar = container.start(ids, serve, image.workdir)
    said = container.run(ids, [*health, "--wait", "3s", "--service", check_manifest.SERVICE])
    want(said.returncode != 0, "ready without a CODEX_HOME that can be written to", said, container)
    sidecar.kill()
    sidecar.wait()


def start_pod(directory: pathlib.Path, image: Image, binary: str, codex: pathlib.Path) -> None:
    """The manifest's pod: its init container, its sidecar, and calls of its orchestrator."""
    pod = check_manifest.Pod(check_manifest.load((HERE / "kubernetes.yaml").read_text(encoding="utf-8")))
    group = pod.spec["securityContext"]["fsGroup"]
    volumes = {}
    for it in pod.spec["volumes"]:
        # As the kubelet leaves them: root's, the group's, and an emptyDir everybody's.
        mode = 0o2777 if "emptyDir" in it else 0o2775
        volumes[it["name"]] = volume(directory / "volumes" / it["name"], 0, group, mode)
        for name, text in pod.named.get(("ConfigMap", it.get("configMap", {}).get("name")), {}).get("data", {}).items():
            (volumes[it["name"]] / name).write_text(text, encoding="utf-8")

    def container(spec: dict) -> Container:
        made = Container(directory / spec["name"], image, binary, codex)
        # Secrets are not in the manifest, and the offline model asks for none.
        made.env |= {name: value for name, value in pod.env(spec).items() if value is not None}
        for mount in spec["volumeMounts"]:
            source = volumes[mount["name"]] / mount.get("subPath", "")
            made.bind(source, mount["mountPath"], read_only=mount.get("readOnly", False))
        made.seal()
        return made

    first = container(pod.directory)
    said = first.run(pod.ids(pod.directory), pod.directory["command"])
    want(said.returncode == 0, "the socket's directory", said, first)
    ours, theirs = container(pod.sidecar), container(pod.orchestrator)
    ids, callers = pod.ids(pod.sidecar), pod.ids(pod.orchestrator)
    ours.env["CODEX_SIDECAR_OFFLINE_MODEL"] = "true"
    sidecar = ours.start(ids, without_tini(pod.sidecar["command"]), image.workdir)
    # The kubelet's probes, which are TCP, from outside of both containers.
    port = pod.sidecar["readinessProbe"]["grpc"]["port"]
    ready(ours, ids, ["codex-sidecar", "health", "--addr", f"127.0.0.1:{port}"])

    made = theirs.run(callers, ["sh", "-c", "umask 0002; mkdir /workspace/repository && echo 1 >/workspace/repository/theirs"])
    want(made.returncode == 0, "the orchestrator's files", made, theirs)
    command = "mkdir ours && echo 2 >ours/file && echo 3 >theirs"
    said = theirs.run(callers, turn(f"[[run {command}]]"))
    want(said.returncode == 0, "the orchestrator's turn", said, ours)
    files = theirs.run(callers, ["sh", "-c", "cd /workspace/repository && cat ours/file theirs && rm -r ours"])
    want(files.stdout == "2\n3\n" and files.returncode == 0, "each can change the other's files", files, ours)

    # The socket lets nobody else in, and nobody put another one in its place.
    asking = ["codex-sidecar", "info"]
    said = theirs.run(callers, asking)
    want(said.returncode == 0, "the orchestrator's question", said, ours)
    stranger = (callers[0] + 1, callers[1])
    for user in (stranger, (callers[0], callers[1] + 1)):
        said = theirs.run(user, asking)
        want(said.returncode != 0, f"user and group {user} were let in", said, ours)
    # Nor a command of a turn: it runs as the sidecar's own user, in reach of the socket.
    calling = f"codex-sidecar info --addr {ours.env['CODEX_SIDECAR_LISTEN']} >/dev/null 2>&1 && echo called back"
    said = theirs.run(callers, turn(f"[[run {calling}; true]]"))
    called = re.search(r"^\s*called back$", said.stdout + said.stderr, re.M)
    want(said.returncode == 0 and not called, "a command called back", said, ours)
    said = ours.run(ids, asking)
    want(said.returncode != 0, "the sidecar's own user was let in", said, ours)
    for user in (callers, stranger):
        said = theirs.run(user, ["sh", "-c", "rm /run/codex-sidecar/codex.sock || touch /run/codex-sidecar/x"])
        want(said.returncode != 0, "a change in the socket's directory", said, ours)
    stopped(ours, sidecar)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: check_container.py BINARY")
    namespaces = ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "--kill-child"]
    allowed = subprocess.run([*namespaces, "true"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if os.geteuid() != 0 or allowed.returncode != 0:
        why = "this is not root" if os.geteuid() != 0 else allowed.stderr.strip()
        print(f"left out: the start on a read-only root: {why}")
        return
    codex = subprocess.run([HERE / "install-codex.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with tempfile.TemporaryDirectory(prefix="codex-sidecar-check-") as directory:
        inside = [sys.executable, "-B", __file__, "--inside", directory, os.path.abspath(sys.argv[1]), codex]
        # All that was started and mounted ends with its namespaces.
        status = subprocess.run([*namespaces, *inside], stdin=subprocess.DEVNULL, timeout=8 * SECONDS).returncode
    if status != 0:
        sys.exit(1)
    print("on a read-only root, as the image's user and as the manifest's pod: it starts, runs turns, and ends when told to")


def inside(directory: str, binary: str, codex: str) -> None:
    """Process 1 of the namespaces, which still sees this machine's files."""
    loopback_up()
    image = Image.parse((HERE / "Containerfile").read_text(encoding="utf-8"))
    vendor = pathlib.Path(codex).resolve().parent.parent
    for start in (start_image, start_pod):
        try:
            start(pathlib.Path(directory) / start.__name__, image, binary, vendor)
        except (Fault, subprocess.SubprocessError, OSError) as error:
            sys.exit(f"{start.__name__}: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(*sys.argv[2:])
    else:
        main()
