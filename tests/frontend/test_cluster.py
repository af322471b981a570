"""A run over several hosts: started, seen, hurt, healed and stopped from one terminal.

Hosts are namespaces with their own sshd (see tests/cluster.py); learners, actors, relays, mpirun,
SSH and tmux are the real ones.
"""

import json
import re
import subprocess
import sys
import time

import pytest

from tests.cluster import PASSWORD, cluster_of, end, wait_until
from tests.conftest import ROOT
from tests.test_experiment import frames_of, metrics_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HEADER = "job,ip,tf_port,cuda_visible_devices,ssh_port,ssh_username,ssh_password"
CARTPOLE = [
    *("--level_name=CartPole-v1", "--agent_name=MLPAgent", "--reward_clipping=none"),
    *("--batch_size=8", "--unroll_length=20", "--num_envs=4", "--progress_secs=1"),
    *("--entropy_cost=0.01", "--learning_rate=0.002", "--epsilon=0.01"),
]
# Somebody else's tmux session. It names its window: tmux renames others after what runs in them.
THEIR_SESSION = ["tmux", "new-session", "-d", "-s", "mine", "-n", "theirs", "sleep", "600"]


class User:
    """Somebody at the first host of a cluster, with the frontend and nothing else."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.host = cluster["front"]
        self.csv = cluster.base / "workers.csv"
        self.logdir = cluster.base / "run"
        self.said = ""  # all that was ever printed

    def write(self, *rows: str, header: str = HEADER) -> None:
        self.csv.write_text("\n".join([header, *rows]) + "\n")
        self.csv.chmod(0o600)

    def call(self, *flags: str, code: int | None = 0, **kwargs) -> str:
        """Runs the frontend; returns what it printed."""
        argv = [sys.executable, ROOT / "run_experiment_mm_raw.py", *flags]
        done = self.host.run(argv, cwd="/", **kwargs)
        self.said += done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *flags: str, code: int | None = 0, **kwargs) -> str:
        shared = [f"--workers_csv_path={self.csv}", f"--logdir={self.logdir}"]
        return self.call(*shared, f"--remote_python={sys.executable}", *flags, code=code, **kwargs)

    def status(self) -> list[dict]:
        return json.loads(self.call("--action=status", "--json", code=None))

    def actors(self, state: str = "acting") -> set[tuple[int, int]]:
        """(set, task) of the actors that act."""
        return {
            (one["index"], actor["task"])
            for one in self.status()
            for actor in (one["status"] or {"actors": []})["actors"]
            if actor["state"] in (state, "waiting") and actor["last_seen_secs"] < 15
        }

    def pid_of(self, index: int, task: int) -> int | None:
        """The process of an actor, as its learner knows it."""
        for actor in (self.status()[index]["status"] or {"actors": []})["actors"]:
            if actor["task"] == task:
                return actor["pid"]
        return None

    def story(self) -> str:
        """All that the run has to say, for a test that fails."""
        texts = [self.call("--action=status", code=None), self.log()]
        for path in self.cluster.base.glob("*/home/.impala_torch/*/workers/*.log"):
            texts.append(f"{path}:\n{path.read_text()}")
        return "\n".join(texts)

    def log(self) -> str:
        return (self.logdir / "workers" / "learners.log").read_text()

    def best_return(self) -> float:
        rows = metrics_of(self.logdir)
        return max(float(row["episode_return"] or 0) for row in rows)


@pytest.fixture
def user_of():
    """Makes a cluster of the named hosts beside the user's own."""
    contexts = []

    def make(*names, **kwargs):
        contexts.append(cluster_of("front", *names, **kwargs))
        return User(contexts[-1].__enter__())

    yield make
    for context in contexts:
        context.__exit__(None, None, None)


def python_processes(host) -> list[str]:
    """What of a run is left on a host."""
    words = ("experiment.py", "impala_torch", "frontend.", "mpirun", "orted", "frontend/scripts")
    return [
        line
        for line in host.processes().values()
        if any(word in line for word in words) and "nsenter" not in line
    ]


def assert_nothing_is_left(user):
    for host in user.cluster.hosts.values():
        wait_until(lambda host=host: not python_processes(host), 15, python_processes(host))
        assert host.windows("impala") == []
        assert not list((host.home / ".impala_torch").glob("*/*.key")), host.name


def assert_no_secret_is_seen(user):
    """Looks for the password and the run's keys in command lines, environments and windows."""
    secrets = [PASSWORD]
    for path in user.cluster.base.glob("*/home/.impala_torch/*/*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
        secrets += re.findall(r'secret\\?": \\?"(.{40})', path.read_text())
    assert len(secrets) > 5
    for host in user.cluster.hosts.values():
        seen = host.run(["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ"]).stdout
        for window in host.windows("impala"):
            argv = ["tmux", "capture-pane", "-p", "-S", "-", "-t", f"=impala:={window}"]
            seen += host.run(argv).stdout
        seen += host.run(["tmux", "show-environment", "-g"]).stdout
        assert "experiment.py" in seen or host.name == "front"
        for secret in secrets:
            assert secret not in seen, host.name


def test_a_run_over_six_hosts_from_start_to_stop(user_of):
    user = user_of("l1", "l2", "a1", "a2", "a3")
    cluster = user.cluster
    names = ("l1", "l2", "a1", "a2", "a3")
    user.write(
        *(f"learner,{cluster[name].ip},8001,,,," for name in ("l1", "l2")),
        *(f"actor,{cluster['a1'].ip},{9001 + n},,,," for n in range(3)),
        f"actor,{cluster['a2'].ip},9001,,,root,{PASSWORD}",
        f"actor,{cluster['a3'].ip},9001,,,,",
    )
    # What is not ours on each host, and must survive.
    others = {}
    for name in names:
        others[name] = cluster[name].popen([sys.executable, "-c", "import time; time.sleep(600)"])
        cluster[name].run(THEIR_SESSION)

    said = user.start(*CARTPOLE, "--heal_secs=5", "--save_checkpoint_secs=5")
    assert "2 learner(s), 5 of 5 actor(s)" in said
    assert said.count("welcomed") == 5
    record = next((user.host.home / ".impala_torch").glob("*/run.json"))

    # Everybody acts; the host with two actors of one learner has a relay.
    wait_until(lambda: user.actors() == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}, 30)
    assert cluster["a1"].windows("impala") == ["relay", "actor-0-0", "actor-0-1", "actor-1-0"]
    assert cluster["a2"].windows("impala") == ["actor-1-1"]
    assert user.host.windows("impala") == ["learners", "monitor"]
    status = user.status()
    assert [one["status"]["host"] for one in status] == ["l1", "l2"]
    assert {actor["relayed"] for actor in status[0]["status"]["actors"]} == {True, False}
    table = user.call("--action=status")
    for word in ("l1", "l2", "a1", "a2", "a3"):
        assert word in table
    shown = user.call("--action=logs", "--worker=actor-1-1")
    assert f"welcomed by the learner at {cluster['l2'].ip}:8001" in shown
    assert "is none of this run's: learners, " in user.call(
        "--action=logs", "--worker=actor-7-7", code=2
    )
    second = user.start(*CARTPOLE, code=2)
    assert "in tmux session 'impala' already" in second
    assert "--replace" in second

    # What others of these machines could see holds no secret.
    assert_no_secret_is_seen(user)

    # A dead actor process comes back where it ran.
    victim = next(
        pid
        for pid, line in cluster["a3"].processes().items()
        if line.startswith(sys.executable) and "--job_name=actor" in line
    )
    cluster["a3"].run(["kill", "-9", victim])
    wait_until(lambda: user.pid_of(0, 2) not in (None, victim), 60)
    assert "exit code 137; starting again in 1 s" in user.call(
        "--action=logs", "--worker=actor-0-2"
    )

    # A host that loses its power comes back with its actors.
    cluster["a2"].kill()
    wait_until(lambda: (1, 1) not in user.actors(), 30)
    cluster["a2"].boot()
    others["a2"] = cluster["a2"].popen([sys.executable, "-c", "import time; time.sleep(600)"])
    cluster["a2"].run(THEIR_SESSION)
    wait_until(lambda: (1, 1) in user.actors(), 90)
    assert f"host {cluster['a2'].ip}: started again actor-1-1" in user.log()

    # A host that is cut off and returns goes on by itself, with the same processes.
    before = python_processes(cluster["a1"])
    cluster["a1"].cut()
    wait_until(lambda: not user.actors() & {(0, 0), (0, 1), (1, 0)}, 60)
    cluster["a1"].mend()
    wait_until(lambda: user.actors() >= {(0, 0), (0, 1), (1, 0)}, 90, user.story)
    assert sorted(python_processes(cluster["a1"])) == sorted(before)

    # A learner that dies takes its group along; all come back from the newest checkpoint.
    pids = {
        pid
        for pid, line in cluster["a1"].processes().items()
        if line.startswith(sys.executable) and "--job_name=actor" in line
    }
    wait_until(lambda: list(user.logdir.glob("checkpoint-*.pt")), 30)
    rank = next(
        pid
        for pid, line in cluster["l2"].processes().items()
        if line.startswith(sys.executable) and "--job_name=learner" in line
    )
    cluster["l2"].run(["kill", "-9", rank])
    wait_until(lambda: "starting them again from the newest checkpoint" in user.log(), 30)
    wait_until(lambda: re.search(r"going on from [\d,]+ frames", user.log()), 60)
    wait_until(lambda: len(user.actors()) == 5, 90, user.story)
    assert pids <= set(cluster["a1"].processes())  # with the environments that they had

    # It learns all the while: a random policy's games last about 22 steps.
    wait_until(lambda: user.best_return() > 60, 120, user.story)
    stopped = user.call("--action=stop")
    assert "has ended" in stopped
    assert frames_of(user.logdir) > 0
    assert_nothing_is_left(user)
    for name in names:
        assert others[name].poll() is None
        assert cluster[name].windows("mine") == ["theirs"]
    assert "nothing was left" in user.call("--action=stop")
    assert "has ended" in user.call("--action=status", code=2)
    assert "run has ended" in user.call("--action=logs", "--worker=actor-0-0")
    # The password is in nothing that anybody could see.
    assert PASSWORD not in user.said + record.read_text()
    for path in [*user.logdir.rglob("*"), *cluster.base.glob("*/home/.impala_torch/**/*")]:
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes(), path
    for other in others.values():
        end(other)


def test_hosts_that_fail_are_named_with_the_reason(user_of):
    user = user_of("l1", "a1", "a2", "a3", "a4", "a5", "a6")
    cluster = user.cluster
    cluster["a1"].kill()  # its address answers no more than that nothing listens
    cluster["a2"].cut()
    known = user.host.home / ".ssh" / "known_hosts"
    lines = known.read_text().splitlines()
    changed = lines[1].split()[2]  # another host's key
    known.write_text(
        "\n".join(
            f"{line.split()[0]} ssh-ed25519 {changed}" if cluster["a4"].ip in line else line
            for line in lines
            if cluster["a3"].ip not in line
        )
        + "\nnothing that is a key\na6 ssh-ed25519 AAAAbad\n"
    )
    rows = [f"learner,{cluster['l1'].ip},8001,,,,,,"]
    rows += [f"actor,{cluster[f'a{n}'].ip},9001,,,,,," for n in (1, 2, 3, 4)]
    rows += [
        f"actor,{cluster['a5'].ip},9001,,,root,wrong-{PASSWORD},,",
        f"actor,{cluster['a6'].ip},9001,,,,,/no/such folder,",
        f"actor,{cluster['l1'].ip},9002,,,,,,",
        f"actor,{cluster['front'].ip},9003,,,,,,",
    ]
    user.write(*rows, header=f"{HEADER},workdir,python")
    rows[7] = rows[7][:-1] + ",/no/python"
    user.write(*rows, header=f"{HEADER},workdir,python")
    # The learner's own row must stay one host with the actor's on it.
    rows[7] = f"actor,{cluster['l1'].ip},9002,,,,,,"
    user.write(*rows, header=f"{HEADER},workdir,python")
    said = user.start(*CARTPOLE, "--ssh_timeout=3")
    assert "2 of 8 actor(s)" in said
    table = {
        line.split()[0]: line
        for line in said.splitlines()
        if line.startswith("  10.77.") and " failed " in line
    }
    reasons = {
        "a1": "refused: nothing takes SSH",
        "a2": "unreachable",
        "a3": "unknown host key",
        "a4": "changed host key",
        "a5": "wrong password for root@",
        "a6": "project folder missing: there is no /no/such folder",
    }
    for name, reason in reasons.items():
        assert reason in table[cluster[name].ip], table[cluster[name].ip]
    for name in ("a3", "a4"):
        assert "SHA256:" in table[cluster[name].ip]
    assert "the run goes on with the others" in said
    assert PASSWORD not in said
    assert "can be read by others" not in said
    # --ssh_accept_new_hosts adds the new one, and never the changed one.
    healed = user.call("--action=heal", code=1)
    assert "unknown host key" in healed
    user.call("--action=stop", code=None)
    said = user.start(*CARTPOLE, "--ssh_timeout=3", "--ssh_accept_new_hosts")
    assert "3 of 8 actor(s)" in said
    assert cluster["a3"].ip in known.read_text()
    assert known.read_text().count(changed) == 2
    user.call("--action=stop", code=None)
    # Too few: everything is ended again.
    user.csv.chmod(0o644)
    said = user.start(*CARTPOLE, "--ssh_timeout=3", "--min_actors=4", code=1)
    assert "only 3 of 8 actor(s) started, and --min_actors=4" in said
    assert f"holds passwords and can be read by others: 'chmod 600 {user.csv}'" in said
    assert_nothing_is_left(user)


def test_a_learner_that_fails_takes_everything_down(user_of):
    user = user_of("l1", "a1")
    cluster = user.cluster
    user.write(
        f"learner,{cluster['l1'].ip},8001,,,,",
        f"learner,{cluster['front'].ip},8001,,,,",
        *(f"actor,{cluster['a1'].ip},{9001 + n},,,," for n in range(2)),
    )
    blocker = cluster["l1"].popen(
        [
            sys.executable,
            "-c",
            "import socket,time; s=socket.create_server(('', 8001)); time.sleep(600)",
        ]
    )
    said = user.start(*CARTPOLE, code=2)
    assert f"the learner's {cluster['l1'].ip}:8001 cannot be served there" in said
    said = user.start(*CARTPOLE, "--skip_check", code=1)
    assert "the learners failed with exit code 2" in said
    assert "cannot be served" in said
    assert_nothing_is_left(user)
    end(blocker)
    # And an actor that ends at once is told with the end of its log.
    said = user.start(*CARTPOLE, "--min_actors=0")
    assert "2 of 2 actor(s)" in said
    user.call("--action=stop")


def test_the_check_tells_of_each_host(user_of):
    user = user_of("l1", "l2", "a1", "a2")
    cluster = user.cluster
    user.write(
        f"learner,{cluster['l1'].ip},8001,,,,,",
        f"learner,{cluster['l2'].ip},8001,,,,,",
        f"actor,{cluster['a1'].ip},9001,,,,,",
        f"actor,{cluster['a2'].ip},9001,,,,,/no/python",
        header=f"{HEADER},python",
    )
    said = user.start("--action=check", code=1)
    for name in ("l1", "l2", "a1"):
        line = next(line for line in said.splitlines() if cluster[name].ip in line)
        assert " works " in line
    assert re.search(rf"{cluster['a1'].ip} .* ms +\d+ MB/s", said)
    assert f"failed: {cluster['a2'].ip}: no Python there: /no/python" in said
    user.write(
        *(f"learner,{cluster[name].ip},8001,,,,," for name in ("l1", "l2")),
        *(f"actor,{cluster[name].ip},9001,,,,," for name in ("a1", "a2")),
        header=f"{HEADER},python",
    )
    said = user.start("--action=check")
    assert re.search(r"allreduce of 4.2 MB over 2 learners: [\d.]+ ms", said)
    assert "fine: nothing keeps the run from starting" in said
    assert not user.logdir.exists()
    assert_nothing_is_left(user)


def test_a_learner_host_that_is_lost_is_noticed_and_the_run_goes_on_when_it_is_back(user_of):
    user = user_of("l1", "l2", "a1")
    cluster = user.cluster
    user.write(
        *(f"learner,{cluster[name].ip},8001,,,," for name in ("l1", "l2")),
        *(f"actor,{cluster['a1'].ip},{9001 + n},,,," for n in range(2)),
    )
    user.start(*CARTPOLE, "--save_checkpoint_secs=2")
    wait_until(lambda: list(user.logdir.glob("checkpoint-*.pt")), 30)
    cluster["l2"].cut()
    lost = time.monotonic()
    wait_until(lambda: "starting them again" in user.log(), 60, "noticed")
    assert time.monotonic() - lost < 60
    cluster["l2"].mend()
    wait_until(lambda: "going on from" in user.log(), 90)
    wait_until(lambda: len(user.actors()) == 2, 60)
    user.call("--action=stop")
    assert_nothing_is_left(user)


def test_learners_that_lose_each_other_alone_end_and_go_on_when_they_are_back(user_of):
    """Neither mpirun, which reaches both, nor Horovod notices that."""
    user = user_of("l1", "l2", "a1")
    cluster = user.cluster
    user.write(
        *(f"learner,{cluster[name].ip},8001,,,," for name in ("l1", "l2")),
        *(f"actor,{cluster['a1'].ip},{9001 + n},,,," for n in range(2)),
    )
    user.start(*CARTPOLE, "--save_checkpoint_secs=2", "--stall_secs=20")
    wait_until(lambda: list(user.logdir.glob("checkpoint-*.pt")), 30)
    cluster["l1"].part_from(cluster["l2"])
    cluster["l2"].part_from(cluster["l1"])
    wait_until(lambda: "stood still" in user.call("--action=status", code=None), 90, user.story)
    assert user.call("--action=status", code=1).count("stalled for") >= 2
    ended = "the learners stood still and ended (exit code 5): starting them again"
    wait_until(lambda: ended in user.log(), 120, user.story)
    for one, other in ((0, 1), (1, 0)):
        assert re.search(rf"learner {one} has been .*: learner {other} does not answer", user.log())
    cluster["l1"].meet(cluster["l2"])
    cluster["l2"].meet(cluster["l1"])
    # What is started meanwhile waits for ever in MPI's start, or until it is ended for that.
    wait_until(lambda: "going on from" in user.log(), 180, user.story)
    wait_until(lambda: len(user.actors()) == 2, 90, user.story)
    assert user.call("--action=status", code=0)
    user.call("--action=stop")
    assert_nothing_is_left(user)


def test_a_bare_host_gets_the_project(user_of):
    user = user_of("a1")
    cluster = user.cluster
    user.write(
        f"learner,{user.host.ip},8001,,,,",
        f"actor,{cluster['a1'].ip},9001,,,,",
    )
    name = "it's my $(touch gotcha); project"
    flags = [f"--remote_workdir=~/{name}", f"--remote_python={sys.executable}", *CARTPOLE]
    said = user.start(*flags, "--sync_code", code=0)
    match = re.search(r"(\d+) of (\d+) files sent", said)
    assert match is not None
    assert match[1] == match[2]
    folder = cluster["a1"].home / name
    assert (folder / "impala_torch" / "actor.py").read_bytes() == (
        ROOT / "impala_torch" / "actor.py"
    ).read_bytes()
    assert not (folder / ".venv").exists()
    user.call("--action=stop")
    (folder / "experiment.py").write_text("an older one\n")
    said = user.start(*flags, "--sync_code")
    assert "1 of " in said
    user.call("--action=stop")
    assert_nothing_is_left(user)
    assert not list(cluster.base.rglob("gotcha"))


def test_pong_to_its_end_with_ports_aliases_and_keys_of_ones_own(user_of):
    user = user_of("l1", "l2", "a1", ssh_port=2222)
    cluster = user.cluster
    ssh = user.host.home / ".ssh"
    (ssh / "id_ed25519").rename(ssh / "other")
    (ssh / "config").write_text(
        f"Host my-actors\n  HostName {cluster['a1'].ip}\n  Port 2222\n  IdentityFile {ssh}/other\n"
    )
    user.write(
        *(f"learner,{cluster[name].ip},8001,2222,root,{ssh}/other" for name in ("l1", "l2")),
        *(f"actor,my-actors,{9001 + n},,," for n in range(3)),
        header="job,ip,tf_port,ssh_port,ssh_username,ssh_key_path",
    )
    said = user.start(
        *("--level_name=PongNoFrameskip-v4", "--agent_name=ShallowConvNetAgent", "--num_envs=4"),
        *("--batch_size=4", "--unroll_length=20", "--total_environment_frames=30000"),
        "--relays=always",
    )
    assert "3 of 3 actor(s)" in said
    # It ends by itself, everywhere.
    wait_until(lambda: not user.host.windows("impala"), 180, user.story)
    assert frames_of(user.logdir) >= 30000
    assert_nothing_is_left(user)
    relay = user.call("--action=logs", "--worker=relay@my-actors", code=None)
    assert "serves" in relay


def test_300_actors_of_30_hosts_are_started_over_one_connection_each(user_of):
    names = [f"a{n}" for n in range(30)]
    user = user_of(*names)
    cluster = user.cluster
    user.write(
        f"learner,{user.host.ip},8001,,,,",
        *(f"actor,{cluster[name].ip},{9001 + n},,,," for name in names for n in range(10)),
    )
    # Ten real actors a host would need more than this machine has; windows, connections and
    # everything else of a start are real.
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from frontend import run_plan, run, start, flags
from frontend.commands import Command
from frontend.hosts.ssh import HostError
import dataclasses
from impala_torch.flags.config import Config
options = flags.Options(workers_csv_path={str(user.csv)!r}, remote_python={sys.executable!r})
sets, _ = run_plan.read(options)
made = run_plan.plan(sets, Config(logdir={str(user.logdir)!r}), options, "run-1")
def stand_in(host):
    windows = [Command(w.name, ("sleep", "600")) for w in host.windows]
    return dataclasses.replace(host, windows=tuple(windows))
made = dataclasses.replace(made, hosts=tuple(map(stand_in, made.hosts)))
begun = time.time()
with made.open_hosts() as hosts:
    failed = start._start_there(made, hosts, {{}})
    print("started", len(failed), time.time() - begun, len(hosts._connections))
    run.end_all(made, hosts)
"""
    done = user.host.popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(
        lambda: sum(len(cluster[name].windows("impala")) for name in names) >= 330, 60, "windows"
    )
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    word, failed, _, connections = out.split()
    assert (word, failed, connections) == ("started", "0", "30")
    assert all(cluster[name].windows("impala") == [] for name in names)
