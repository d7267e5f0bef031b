"""The stand-in's node: the cluster's state is a register that a leader of a majority commits, as the real server's topology is; documents lie
in vBuckets with an active and replicas.
Invariant: an acknowledged write of a durable bucket is flushed by a majority of its vBucket's copies."""
import base64, copy, hashlib, hmac, http.server, json, os, random, re, signal, socket, sys, threading, time, zlib  # noqa: E401
import urllib.parse
import urllib.request

HOME, SECRET, NVB = "/opt/couchbase/var/lib/couchbase", b"stand-in", 32
os.makedirs(f"{HOME}/config", exist_ok=True), os.makedirs(f"{HOME}/data", exist_ok=True)
LOCK, WRITES = threading.RLock(), threading.RLock()
START = time.time()
QUERY = {"queryCompletedThreshold": 1000, "queryCompletedLimit": 4000}

class Http(Exception):
    """An answer that is an error."""

def no(status, body):
    raise Http(status, body)

def digest(password, salt=None):
    salt = salt or os.urandom(8).hex()
    return salt + hashlib.sha256((salt + password).encode()).hexdigest()

def matches(stored, password):
    return hmac.compare_digest(stored, digest(password, stored[:16]))

def rpc(host, message, timeout=2.0):
    """To another member, over what stands for the Erlang distribution; signed with what stands for the cookie."""
    body = json.dumps(message).encode()
    request = urllib.request.Request(f"http://{host}:21100/", body, {"X-Mac": hmac.new(SECRET, body, "sha256").hexdigest()})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.loads(answer.read())

def ask(host, message, timeout=2.0):
    """The answer, {} when there is none."""
    try:
        return rpc(host, message, timeout)
    except Exception:
        return {}

class Store:
    """Documents of this node: {bucket: {vb: [epoch, seq, {key: value}]}}, each change flushed before it counts."""
    def __init__(self):
        self.vbs, self.path = {}, f"{HOME}/data/log"
        if os.path.exists(self.path):
            for line in open(self.path, "rb"):
                if not line.endswith(b"\n"):
                    break  # torn by a crash: it was never acknowledged
                self.apply(json.loads(line))
        with open(self.path + ".new", "w") as file:
            for bucket, vbs in self.vbs.items():
                file.writelines(json.dumps([[True, bucket, vb, *entry]]) + "\n" for vb, entry in vbs.items())
            file.flush(), os.fsync(file.fileno())
        os.rename(self.path + ".new", self.path)
        self.file = open(self.path, "a")
    def apply(self, changes):
        for full, bucket, vb, epoch, seq, docs in changes:
            entry = self.vbs.setdefault(bucket, {}).setdefault(int(vb), [0, 0, {}])
            entry[:] = [epoch, seq, dict(docs) if full else {**entry[2], **docs}]
    def put(self, changes):
        self.file.write(json.dumps(changes) + "\n"), self.file.flush(), os.fsync(self.file.fileno())
        self.apply(changes)
    def get(self, bucket, vb):
        return self.vbs.get(bucket, {}).get(int(vb), [0, 0, {}])

class Node:
    def __init__(self):
        self.uuid, self.host, self.claim, self.state, self.term, self.voted = os.urandom(16).hex(), "cb.local", None, None, 0, None
        self.path = f"{HOME}/config/config.dat"
        if os.path.exists(self.path):
            self.__dict__.update(json.load(open(self.path)))
        self.store, self.leader, self.heard, self.patience = Store(), None, time.monotonic(), 2 + random.random()
        self.seen, self.frozen, self.busy, self.beating = {}, {}, False, set()
        self.save()
    def save(self):
        with open(self.path + ".new", "w") as file:
            json.dump({key: getattr(self, key) for key in ("uuid", "host", "claim", "state", "term", "voted")}, file)
            file.flush(), os.fsync(file.fileno())
        os.rename(self.path + ".new", self.path)
    def reset(self):
        """What an ejected node does: it forgets everything, its password too."""
        with WRITES, LOCK:
            for path in (self.path, self.store.path):
                os.path.exists(path) and os.unlink(path)
            self.__init__()
    def position(self):
        return [self.state["term"], self.state["rev"]] if self.state else [0, 0]
    def up(self, host):
        return host == self.host or time.monotonic() - self.seen.get(host, -9) < 3
    def quorum(self):
        return sum(map(self.up, self.state["nodes"])) > len(self.state["nodes"]) // 2
    def lead(self):
        return self.state and self.leader == self.host
    def active(self):
        return [host for host, node in self.state["nodes"].items() if node["membership"] == "active"]
    def commit(self, change):
        """Applies `change` to a copy of the state and hands it to a majority; else this node leads no more and nothing is known."""
        with LOCK:
            self.lead() or no(503, "not the orchestrator")
            new = copy.deepcopy(self.state)
            change(new)
            new["rev"], new["term"] = new["rev"] + 1, self.term
            gone = [host for host in self.state["nodes"] if host not in new["nodes"]]
            good, term = {self.host} & set(new["nodes"]), self.term
            for host in [host for host in new["nodes"] if host != self.host] + [host for host in gone if host != self.host]:
                if self.up(host) and ask(host, {"do": "beat", "from": self.host, "term": term, "leads": True, "state": new}, 1.5).get("ok"):
                    good.add(host)
            if len(good & set(new["nodes"])) <= len(new["nodes"]) // 2:
                self.leader = None
                no(504, "no majority of the nodes took over the change")
            self.state = new
            self.save()
            if self.host in gone:
                threading.Thread(target=self.reset).start()
    def adopt(self, state):
        self.state = state
        if self.host not in state["nodes"]:
            threading.Thread(target=self.reset).start()
        self.save()
    def beat(self, host):
        while True:
            with LOCK:
                if not self.state or host not in self.state["nodes"]:
                    self.beating.discard(host)
                    return
                message = {"do": "beat", "from": self.host, "term": self.term, "leads": self.lead(), "uuid": self.state["uuid"]}
            if reply := ask(host, message, 1.5):
                with LOCK:
                    if reply.get("gone") and self.state and reply["position"] > self.position():
                        threading.Thread(target=self.reset).start()
                    if reply.get("node"):
                        self.seen[host] = time.monotonic()
                    if reply.get("term", 0) > self.term:
                        self.term, self.voted, self.leader = reply["term"], None, None
                        self.save()
                    if self.lead() and reply.get("position", [0, 0]) < self.position() and reply.get("node"):
                        ask(host, {**message, "state": self.state}, 1.5)
            time.sleep(0.5)
    def on_beat(self, m):
        with LOCK:
            if self.state is None or ("uuid" in m and m["uuid"] != self.state["uuid"]):
                return {"ok": False}
            if m["from"] not in self.state["nodes"] and not m.get("state", {}).get("nodes", {}).get(m["from"]):
                return {"ok": False, "gone": m["from"] not in self.state["nodes"], "position": self.position()}
            self.seen[m["from"]] = time.monotonic()
            if m["term"] > self.term:
                self.term, self.voted, self.leader = m["term"], None, None
                self.save()
            if m["leads"] and m["term"] == self.term:
                self.leader, self.heard = m["from"], time.monotonic()
                if "state" in m and [m["state"]["term"], m["state"]["rev"]] > self.position():
                    self.adopt(m["state"])
            return {"ok": m["term"] == self.term, "node": True, "term": self.term, "position": self.position()}
    def on_vote(self, m):
        with LOCK:
            known = self.state and m["from"] in self.state["nodes"] and m["uuid"] == self.state["uuid"]
            quiet = time.monotonic() - self.heard > 1.5 and not self.lead()
            if known and quiet and m["term"] > self.term:
                self.term, self.voted = m["term"], None
            good = known and quiet and m["term"] == self.term and self.voted in (None, m["from"]) and m["position"] >= self.position()
            if good:
                self.voted, self.heard = m["from"], time.monotonic() - 1
            self.save()
            return {"ok": bool(good)}
    def tick(self):
        while True:
            time.sleep(0.3)
            call = None
            with LOCK:
                if not self.state:
                    continue
                for host in set(self.state["nodes"]) - {self.host} - self.beating:
                    self.beating.add(host)
                    threading.Thread(target=self.beat, args=(host,), daemon=True).start()
                if self.lead():
                    self.quorum() or setattr(self, "leader", None)
                elif time.monotonic() - self.heard > self.patience and self.quorum():
                    self.term, self.voted, self.leader = self.term + 1, self.host, None
                    self.heard, self.patience = time.monotonic(), 2 + 2 * random.random()
                    self.save()
                    call = {"do": "vote", "from": self.host, "term": self.term, "position": self.position(), "uuid": self.state["uuid"]}
                    voters = [host for host in self.state["nodes"] if host != self.host and self.up(host)]
            if call:
                self.elect(call, voters)
            if self.lead():
                try:
                    self.watch()
                except (Http, OSError) as error:
                    print("orchestrator:", error, flush=True)
    def elect(self, call, voters):
        good = 1 + sum(ask(host, call, 1).get("ok", False) for host in voters)
        with LOCK:
            if self.term == call["term"] and self.state and good > len(self.state["nodes"]) // 2:
                self.leader = self.host
                def stop(s):
                    if s["moving"]:
                        s["moving"], s["failed"] = None, "Rebalance was interrupted: the orchestrator changed"
                self.commit(stop)
    def watch(self):
        """Auto-failover: one node at a time, as long as a majority is up and durable writes stay on a survivor."""
        settings, now = self.state["settings"]["/settings/autoFailover"], time.monotonic()
        down = [host for host in self.active() if not self.up(host)]
        self.missed = {host: getattr(self, "missed", {}).get(host, now) for host in down}
        if len(down) == 1 and settings["enabled"] and self.quorum() and not self.state["moving"] and settings["count"] < settings["maxCount"] \
                and now - self.missed[down[0]] > settings["timeout"]:
            if any(sum(bool(h) and h != down[0] for h in chain) < len(chain) - len(chain) // 2
                   for bucket in self.state["buckets"].values() for chain in bucket["map"]):
                return
            self.fail_over(down[0])
            self.commit(lambda s: s["settings"]["/settings/autoFailover"].update(count=settings["count"] + 1))
    def fail_over(self, gone):
        self.quorum() or no(504, "Cannot safely perform a failover at the moment: quorum lost")
        seqs = {host: rpc(host, {"do": "seqs"}) if host != self.host else self.on_seqs({}) for host in self.active() if host != gone and self.up(host)}
        def change(s):
            s["nodes"][gone]["membership"] = "inactiveFailed"
            for name, bucket in s["buckets"].items():
                for vb, chain in enumerate(bucket["map"]):
                    rest = [host for host in chain if host and host != gone]
                    if chain[0] == gone:
                        rest.sort(key=lambda host: seqs.get(host, {}).get(name, {}).get(str(vb), [0, 0]), reverse=True)
                        bucket["epochs"][vb] += 1
                    chain[:] = (rest + [None] * len(chain))[:len(chain)]
        self.commit(change)
    def on_seqs(self, m):
        with LOCK:
            return {b: {str(vb): entry[:2] for vb, entry in vbs.items()} for b, vbs in self.store.vbs.items()}
    def rebalance(self, eject):
        try:
            for step in range(10):
                time.sleep(0.3)
                self.commit(lambda s: s["moving"].update(progress=step * 10))
            stay = [host for host in self.state["nodes"] if host not in eject]
            for name in list(self.state["buckets"]):
                bucket = self.state["buckets"][name]
                size, wanted = bucket["replicaNumber"] + 1, []
                for vb, chain in enumerate(bucket["map"]):
                    ring = [stay[(vb + i) % len(stay)] for i in range(min(size, len(stay)))]
                    wanted.append(ring + [None] * (size - len(ring)))
                for source in {chain[0] for chain in bucket["map"] if chain[0]}:
                    vbs = {vb: [h for h in wanted[vb] if h and h != source] for vb, chain in enumerate(bucket["map"])
                           if chain[0] == source and chain != wanted[vb]}
                    if not vbs:
                        continue
                    begun, order = time.monotonic(), {"do": "handoff", "bucket": name, "vbs": vbs}
                    (self.on_handoff(json.loads(json.dumps(order))) if source == self.host else rpc(source, order, 20))["ok"] or no(500, "handoff")
                    time.monotonic() - begun < 8 or no(500, "the handoff took too long")

                    def move(s):
                        for vb in vbs:
                            s["buckets"][name]["epochs"][vb] += s["buckets"][name]["map"][vb][0] != wanted[vb][0]
                            s["buckets"][name]["map"][vb] = wanted[vb]
                    self.commit(move)
            def end(s):
                s["nodes"] = {h: {**n, "membership": "active", "recovery": "none"} for h, n in s["nodes"].items() if h not in eject}
                s["settings"]["/settings/autoFailover"]["count"] = 0
                s["moving"] = s["failed"] = None
            self.commit(end)
        except Exception as error:
            print("rebalance failed:", repr(error), flush=True)
            if self.lead():
                self.commit(lambda s: s.update(moving=None, failed="Rebalance failed. See logs for detailed reason."))
        finally:
            self.busy = False
    def on_handoff(self, m):
        """Copies vBuckets to their new holders and takes no write of them until the layout is another, or 12 seconds."""
        with WRITES:
            for vb in m["vbs"]:
                self.frozen[m["bucket"], int(vb)] = time.monotonic() + 12, self.state["buckets"][m["bucket"]]["map"][int(vb)]
            for host in {h for hosts in m["vbs"].values() for h in hosts}:
                with LOCK:
                    send = [[True, m["bucket"], int(vb), *self.store.get(m["bucket"], vb)] for vb, hosts in m["vbs"].items() if host in hosts]
                rpc(host, {"do": "copy", "from": self.host, "rev": self.state["rev"], "changes": send}, 8)["ok"] or no(500, "copy")
            return {"ok": True}
    def holds(self, bucket, vb):
        entry = self.state and self.host in self.state["nodes"] and self.state["buckets"].get(bucket)
        return entry and entry["map"][vb][0] == self.host
    def on_copy(self, m):
        with LOCK:
            if not self.state or self.state["rev"] > m["rev"] and any(self.state["buckets"][c[1]]["map"][c[2]][0] != m["from"] for c in m["changes"]):
                return {"ok": False}
            self.store.put(m["changes"])
            return {"ok": True}
    def on_replicate(self, m):
        """Takes what follows on what it has; names the vBuckets that it needs whole."""
        with LOCK:
            good, need = [], []
            for change, before in m["changes"]:
                bucket, vb = change[1], change[2]
                if not self.state or (self.state["rev"] >= m["rev"] and self.state["buckets"][bucket]["map"][vb][0] != m["from"]):
                    continue
                (good if self.store.get(bucket, vb)[:2] == before else need).append((vb, change))
            good and self.store.put([change for _, change in good])
            return {"good": [vb for vb, _ in good], "need": [vb for vb, _ in need]}
    def on_write(self, m):
        """A write of a durable bucket; answers what a majority of the copies has flushed."""
        bucket, done = m["bucket"], []
        with WRITES:
            with LOCK:
                rev, changes, acks = self.state["rev"], [], {}
                for vb, docs in ((int(vb), docs) for vb, docs in m["vbs"].items()):
                    until, old = self.frozen.get((bucket, vb), (0, 0))
                    chain = self.state["buckets"][bucket]["map"][vb]
                    if not self.holds(bucket, vb) or (time.monotonic() < until and old == chain) or sum(map(bool, chain)) <= len(chain) // 2:
                        continue  # not my vBucket; it moves; durability impossible
                    epoch, seq, _ = self.store.get(bucket, vb)
                    changes.append(([False, bucket, vb, self.state["buckets"][bucket]["epochs"][vb], seq + 1, docs], [epoch, seq], chain))
                changes and self.store.put([change for change, _, _ in changes])
                acks = {change[2]: 1 for change, _, _ in changes}
            for host in {h for _, _, chain in changes for h in chain[1:] if h and self.up(h)}:
                mine = [(change, before) for change, before, chain in changes if host in chain]
                reply = ask(host, {"do": "replicate", "from": self.host, "rev": rev, "changes": mine}, 3) or {"good": [], "need": []}
                with LOCK:
                    whole = [[True, bucket, vb, *self.store.get(bucket, vb)] for vb in reply["need"]]
                if whole and ask(host, {"do": "copy", "from": self.host, "rev": rev, "changes": whole}, 5).get("ok"):
                    reply["good"] += reply["need"]
                for vb in reply["good"]:
                    acks[vb] += 1
            for change, _, chain in changes:
                if acks[change[2]] > len(chain) // 2:
                    done.append(change[2])
        return {"done": done}
    def on_read(self, m):
        with LOCK:
            good = [int(vb) for vb in m["vbs"] if self.holds(m["bucket"], int(vb))]
            return {"done": good, "docs": {k: self.store.get(m["bucket"], vb)[2][k] for vb in good for k in m["vbs"][str(vb)]
                                           if k in self.store.get(m["bucket"], vb)[2]}}
