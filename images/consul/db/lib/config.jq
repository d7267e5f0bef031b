# A server's configuration, from a request. All functions take the request as input.

def bytes: ascii_downcase | capture("^(?<n>[0-9.]+) *(?<u>[kmgt]?)") | (.n | tonumber) * pow(1024; {"": 0, k: 1, m: 2, g: 3, t: 4}[.u]) | floor;
def milliseconds: capture("^(?<n>[0-9.]+) *(?<u>[a-z]*)") | (.n | tonumber) * {"": 1, ms: 1, s: 1000, min: 60000, h: 3600000, d: 86400000}[.u] | floor;
def kinds: {
  live: {log_level: "text", "limits.http_max_conns_per_client": "number", "performance.raft_multiplier": "number",
    raft_snapshot_threshold: "number", raft_trailing_logs: "number"},
  restart: {"limits.kv_max_value_size": "bytes", "limits.txn_max_req_len": "bytes",
    session_ttl_min: "duration", default_query_time: "duration", max_query_time: "duration"}};
def value($kind): if $kind == "bytes" then bytes elif $kind == "duration" then "\(milliseconds)ms" elif $kind == "number" then tonumber else . end;

# settings(APPLY): the user's settings of a kind, in the places where the server expects them.
def settings($apply): .config as $config | reduce (kinds[$apply] | to_entries[] | select($config[.key])) as $key
  ({}; setpath($key.key | split("."); $config[$key.key] | value($key.value)));

# shown: the live settings as a running server's own view of its configuration has them.
def shown: {log_level: (.Logging.LogLevel | ascii_downcase), "limits.http_max_conns_per_client": .HTTPMaxConnsPerClient,
    "performance.raft_multiplier": (.ConsulRaftHeartbeatTimeout | milliseconds / 1000),
    raft_snapshot_threshold: .RaftSnapshotThreshold, raft_trailing_logs: .RaftTrailingLogs} | map_values(tostring);

# server: nothing here lets a server begin a cluster of its own; only the verb `found` does.
def server: .self as $self | (.members[] | select(.id == $self)) as $own
  | "{{ if GetAllInterfaces | include \"type\" \"IPv6\" }}::{{ else }}0.0.0.0{{ end }}" as $any
  | {
    server: true, node_name: $self, datacenter: (.cluster.engineName | ascii_downcase), data_dir: "/data/consul",
    bind_addr: (if $own.address // "" | contains(":") then "::" else "0.0.0.0" end), client_addr: $any,
    ports: {dns: -1, grpc: -1, grpc_tls: -1, serf_wan: -1, https: -1},
    # A member that leaves must not find its way back, should it be started once more.
    retry_join: [select($own.state != "leaving") | .members[] | select(.component == $own.component and .shard == $own.shard
      and .id != $self and (.state | IN("joined", "joining", "leaving"))) | .name],
    retry_interval: "3s",
    leave_on_terminate: false, skip_leave_on_interrupt: true,
    # Only a verb ends a membership: neither does the leader for being away, nor does a server refuse to come back.
    autopilot: {cleanup_dead_servers: false, server_stabilization_time: "2s"}, reconnect_timeout: "87600h", server_rejoin_age_max: "87600h",
    # The configuration alone holds the key of the gossip; the volume keeps no copy.
    encrypt: "${secret:gossip}", disable_keyring_file: true,
    acl: {enabled: true, default_policy: "deny", tokens: {initial_management: "${secret:admin}", agent: "${secret:admin}"}},
    connect: {enabled: false}, performance: {raft_multiplier: 3}, disable_update_check: true
  } + (if $own.address then {advertise_addr: $own.address} else {} end);
def config: (server * settings("restart"));
