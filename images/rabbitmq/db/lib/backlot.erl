%% The verbs that need the engine, run inside its virtual machine: they read RabbitMQ's own state and cost a few milliseconds.
%%
%% Invariant: the broker runs only on a volume with the file `member`, which `found` and `join` write at their end. Without it the
%% machine waits without a broker, so that no start can make a second cluster.
-module(backlot).
-export([boot/0, verb/4, set/3, cluster/0, knows/1, drop/2]).
-define(DIR, "/data/rabbitmq/").
-define(REPLICAS, 3).

boot() ->
    {ok, _} = application:ensure_all_started(rabbitmq_prelaunch),
    case {exists("member"), exists("left")} of
        {true, false} -> rabbit:boot();
        _ -> logger:notice("no member of a cluster yet, or no more: the broker is not started")
    end.

%% Answers the exit code; the result is in the file.
verb(Verb, RequestFile, ResultFile, Secrets) ->
    {ok, Text} = file:read_file(RequestFile),
    Request = rabbit_json:decode(Text),
    Run = fun() -> guarded(fun() -> handle(Verb, Request, Secrets) end) end,
    {Code, Result} = case lists:member(Verb, [found, join, leave, forget, rebalance]) of
        true -> change(Run, maps:get(<<"deadlineSeconds">>, Request) - 5);
        false -> Run()
    end,
    write(ResultFile, Result),
    Code.

write(File, Result) ->
    ok = file:write_file(File ++ ".new", rabbit_json:encode(Result)),
    ok = file:rename(File ++ ".new", File).

%% Work goes on when the verb that began it is killed; a second call meanwhile is told so.
change(Run, Seconds) ->
    {Pid, Monitor} = spawn_monitor(fun() ->
        exit(case catch register(backlot_change, self()) of
            true -> {answer, Run()};
            _ -> {answer, fail(12, 'Busy', "an earlier call is still at work")}
        end)
    end),
    receive
        {'DOWN', Monitor, process, Pid, {answer, Answer}} -> Answer;
        {'DOWN', Monitor, process, Pid, Reason} -> fail(31, 'EngineError', short(Reason))
    after Seconds * 1000 -> pending("goes on")
    end.

guarded(Run) ->
    try Run()
    catch
        throw:{Code, Result} when is_integer(Code) -> {Code, Result};
        error:{erpc, _} -> fail(11, 'NotNow', "another member does not answer");
        _:Reason -> fail(31, 'EngineError', short(Reason))
    end.

done(Changed) -> {0, #{changed => Changed}}.
done(Changed, Output) -> {0, #{changed => Changed, output => Output}}.
engine_id(Changed) -> done(Changed, #{engineId => node()}).
fail(Code, Name, Message) -> {Code, #{error => #{code => Name, message => text(Message)}}}.
pending(Note) -> {10, #{progress => #{fraction => 0.5, note => text(Note)}}}.
later(Message) -> throw(fail(11, 'NotNow', Message)).
unsafe(Blockers) -> throw({22, #{blockers => Blockers}}).
blocker(Object, Reason, Hint) -> #{object => text(Object), reason => text(Reason), hint => text(Hint)}.
text(Text) -> unicode:characters_to_binary(Text).
short(Term) -> string:slice(io_lib:format("~0p", [Term]), 0, 500).
exists(Name) -> filelib:is_regular(?DIR ++ Name).
mark(Name, Content) ->
    {ok, File} = file:open(?DIR ++ Name ++ ".new", [write, raw]),
    ok = file:write(File, Content),
    ok = file:sync(File),
    ok = file:close(File),
    ok = file:rename(?DIR ++ Name ++ ".new", ?DIR ++ Name).

%% The group's members of the request but this one and those that leave, in the given states, as nodes; the via comes first.
peers(Request = #{<<"self">> := Self, <<"members">> := Members}, States) ->
    Leaving = maps:get(<<"leaving">>, maps:get(<<"plan">>, Request, #{}), []),
    Via = maps:get(<<"via">>, Request, null),
    Rows = [Row || Row = #{<<"id">> := Id, <<"state">> := State} <- Members,
                   Id =/= Self, not lists:member(Id, Leaving), lists:member(State, States)],
    {First, Rest} = lists:partition(fun(#{<<"id">> := Id}) -> Id =:= Via end, Rows),
    [node_of(Row) || Row <- First ++ Rest].
node_of(#{<<"name">> := Name}) -> binary_to_atom(<<"rabbit@", Name/binary>>).
subject(#{<<"subject">> := Subject, <<"members">> := Members}) ->
    hd([{Row, node_of(Row)} || Row = #{<<"id">> := Id} <- Members, Id =:= Subject]).

%% What this member knows of its cluster, for the others.
cluster() ->
    {ok, Stamp} = file:read_file(?DIR ++ "member"),
    true = rabbit:is_running(),
    [Uid | _] = binary:split(Stamp, <<" ">>),
    {Uid, rabbit_mnesia:cluster_nodes(all), rabbit_mnesia:cluster_nodes(running)}.
%% A broker that starts, or paused itself without a majority, cannot tell: nobody may be taken for removed by its word.
knows(Node) -> case rabbit:is_running() of true -> lists:member(Node, rabbit_mnesia:cluster_nodes(all)); false -> unknown end.

%% The first of the nodes that serves, with its list.
ask(Nodes, Uid) ->
    Answers = [{Node, Answer} || {Node, {ok, Answer}} <- lists:zip(Nodes, erpc:multicall(Nodes, ?MODULE, cluster, [], 4000))],
    case Answers of
        [] -> later("no other member serves");
        [{Node, {Uid, All, Running}} | _] -> {Node, All, Running};
        _ -> throw(fail(23, 'OtherCluster', "the others are members of another cluster"))
    end.

stamp(Uid) -> <<Uid/binary, " ", (atom_to_binary(node()))/binary>>.
is_member(Uid) ->
    Stamp = stamp(Uid),
    case file:read_file(?DIR ++ "member") of
        {ok, Stamp} -> true;
        {ok, _} -> throw(fail(23, 'OtherCluster', "the volume holds a member of another cluster"));
        {error, enoent} -> false
    end.

%% Starts the broker on an empty database: alone, or as a part of the cluster of the given nodes, for which it waits.
start_blank(Nodes) ->
    mark("joining", ""),
    _ = file:del_dir_r(?DIR ++ "mnesia"),
    _ = application:load(rabbit),  % else loading it later would bring the defaults back
    ok = application:set_env(rabbit, cluster_nodes, {Nodes, disc}, [{persistent, true}]),
    ok = rabbit:boot().
become_member(Uid) ->
    mark("member", stamp(Uid)),
    _ = file:delete(?DIR ++ "joining").

handle(found, #{<<"cluster">> := #{<<"uid">> := Uid} = Cluster}, Secrets) ->
    Founded = is_member(Uid),
    Founded orelse maps:get(<<"founding">>, Cluster, false) orelse
        throw(fail(20, 'NotFounding', "the group is not being founded")),
    % The user `admin` is the default user of the first start (see render): there is no moment with a known password.
    Founded orelse rabbit:is_running() orelse start_blank([]),
    rabbit:is_running() orelse later("the broker does not run"),
    case rabbit_auth_backend_internal:lookup_user(<<"app">>) of
        {ok, _} -> ok;
        _ ->
            {ok, Password} = file:read_file(Secrets ++ "/app/current"),
            rabbit_auth_backend_internal:add_user(<<"app">>, string:trim(Password), <<"backlot">>)
    end,
    rabbit_auth_backend_internal:set_tags(<<"app">>, [policymaker], <<"backlot">>),
    rabbit_auth_backend_internal:set_permissions(<<"app">>, <<"/">>, <<".*">>, <<".*">>, <<".*">>, <<"backlot">>),
    Founded orelse rabbit_nodes:set_cluster_name(maps:get(<<"engineName">>, Cluster), <<"backlot">>),
    Founded orelse become_member(Uid),
    engine_id(not Founded);

handle(join, Request = #{<<"cluster">> := #{<<"uid">> := Uid}}, _) ->
    {IsMember, Peers} = {is_member(Uid), peers(Request, [<<"joined">>])},
    IsMember andalso Peers =:= [] andalso rabbit:is_running() andalso throw(engine_id(false)),
    {Peer, All, _} = ask(Peers, Uid),
    case {IsMember, rabbit:is_running(), lists:member(node(), All)} of
        {true, true, true} -> throw(engine_id(false));
        {true, true, false} -> throw(fail(23, 'NotListed', "the cluster does not list this member any more"));
        {true, false, _} -> throw(pending("the broker starts"));
        {false, true, true} -> ok;
        % Our own attempt that was cut off: no client has seen that broker, but queues may have counted on it.
        {false, _, true} -> case exists("joining") of
            true -> erpc:call(Peer, ?MODULE, drop, [node(), false]);
            false -> unsafe([blocker(node_name(node()), "the volume is empty, but the cluster lists the member", "forget it first")])
        end;
        {false, _, false} -> ok
    end,
    rabbit:is_running() orelse start_blank([Peer]),
    % Read from the peer: a broker that is not listed there is alone.
    true = erpc:call(Peer, ?MODULE, knows, [node()]),
    become_member(Uid),
    engine_id(true);

handle(leave, Request = #{<<"cluster">> := #{<<"uid">> := Uid}}, _) ->
    Peers = peers(Request, [<<"joined">>]),
    rabbit:is_running() andalso rabbit_mnesia:cluster_nodes(all) =:= [node()] andalso
        unsafe([blocker(maps:get(<<"self">>, Request), "it is the last member", "delete the Database instead")]),
    {Peer, All, Running} = ask(Peers, Uid),
    case lists:member(node(), All) of
        false -> done(false);
        true ->
            exists("left") orelse begin
                serving(),
                empty([Node || Node <- Running, lists:member(Node, Peers)]),
                mark("left", "")
            end,
            % To stop a broker that was never started would wait for its start.
            rabbit:is_running() andalso rabbit:stop(),
            erpc:call(Peer, ?MODULE, drop, [node(), false]),
            done(true)
    end;

handle(forget, Request, _) ->
    {Row, Node} = subject(Request),
    done(drop(Node, maps:get(<<"state">>, Row) =:= <<"dead">>));

handle(rebalance, Request, _) ->
    serving(),
    Leaving = maps:get(<<"leaving">>, maps:get(<<"plan">>, Request, #{}), []),
    Stay = [Node || Node <- rabbit_mnesia:cluster_nodes(running),
                    not lists:any(fun(Id) -> element(1, row(Request, Node)) =:= Id end, Leaving)],
    Results = [{Q, Result} || Q <- queues(), Result <- spread(Q, Stay)],
    case [blocker(name(Q), short(Error), "") || {Q, {error, Error}} <- Results] of
        [] when Results =:= [] -> done(false);
        [] -> _ = rabbit_amqqueue:rebalance(quorum, <<".*">>, <<".*">>), done(true);
        [#{object := Queue} | _] -> pending(["a replica is missing yet: ", Queue])
    end;

handle(membership, Request, _) ->
    serving(),
    All = lists:sort(rabbit_mnesia:cluster_nodes(all)),
    Running = rabbit_mnesia:cluster_nodes(running),
    done(false, #{version => integer_to_binary(erlang:phash2(All)), members => [
        maps:merge(case row(Request, Node) of {null} -> #{}; {Id} -> #{id => Id} end,
                   #{engineId => Node, vote => true, up => lists:member(Node, Running)}) || Node <- All]});

handle('can-disrupt', Request = #{<<"members">> := Members, <<"self">> := Self}, _) ->
    serving(),
    Wanted = maps:get(<<"members">>, maps:get(<<"params">>, Request, #{}), [Self]),
    Nodes = [{Id, node_of(Row)} || Id <- Wanted, Row = #{<<"id">> := Other} <- Members, Other =:= Id],
    {Away, Up} = lists:partition(fun({_, Node}) -> not lists:member(Node, rabbit_mnesia:cluster_nodes(running)) end, Nodes),
    {Free, Blockers} = first(Up, []),
    Allowed = [Id || {Id, _} <- Away] ++ Free,
    {0, #{output => #{allowed => Allowed}, blockers => case Allowed of [] -> Blockers; _ -> [] end}};

handle('post-start', _, _) ->
    IsDrained = rabbit:is_running() andalso rabbit_maintenance:is_being_drained_local_read(node()),
    IsDrained andalso rabbit_maintenance:revive(),
    done(IsDrained);

handle('pre-stop', Request, _) ->
    case rabbit:is_running() andalso maps:get(<<"reason">>, Request, null) =/= <<"stopAll">> of
        true -> _ = rabbit_maintenance:drain(), done(true);
        false -> done(false)
    end;

handle(role, _, _) ->
    done(false, case look() of
        {ready, _} ->
            IsWritable = rabbit_alarm:get_alarms() =:= [] andalso not rabbit_maintenance:is_being_drained_local_read(node()),
            #{role => peer, writable => IsWritable};
        {none, _} -> #{role => observer, writable => false};
        _ -> #{role => unknown, writable => false}
    end);

handle(health, _, _) ->
    case look() of
        {ready, Nodes} ->
            Missing = Nodes -- rabbit_mnesia:cluster_nodes(running),
            Alarms = lists:usort([case Alarm of {{resource_limit, Kind, _}, _} -> Kind; {Kind, _} -> Kind; Kind -> Kind end
                                  || Alarm <- rabbit_alarm:get_alarms()]),
            Lost = ets:select_count(ra_state, [{{'_', State}, [], [true]} || State <- [candidate, pre_vote]]),
            IsDrained = rabbit_maintenance:is_being_drained_local_read(node()),
            Reasons = ['MembersMissing' || Missing =/= []] ++ ['Partitioned' || rabbit_node_monitor:partitions() =/= []] ++
                ['QueuesWithoutLeader' || Lost > 0] ++ ['Alarm' || Alarms =/= []] ++ ['Maintenance' || IsDrained],
            Verdict = case Reasons -- ['Maintenance'] of
                [] -> ok;
                ['QueuesWithoutLeader' | _] -> partlyLost;
                _ -> degraded
            end,
            health(up, not IsDrained, Verdict, Reasons, lists:join("; ", [["missing: ", names(Missing)] || Missing =/= []] ++ [["alarms: ", names(Alarms)] || Alarms =/= []]));
        {none, _} -> health(up, false, unknown, ['NotAMember'], "the member has not joined yet, or has left");
        {_, Nodes} ->
            Alive = [Node || Node <- Nodes, lists:member(Node, [node() | nodes()])],
            {Uptime, _} = statistics(wall_clock),
            case length(Alive) * 2 > length(Nodes) orelse Uptime < 15000 of
                true -> health(starting, false, unknown, ['Starting'], "loads, or waits for the other members");
                false -> health(starting, false, noQuorum, ['NoQuorum'], ["fewer than a majority reach each other: ", names(Alive)])
            end
    end.

health(Process, Ready, Cluster, Reasons, Message) ->
    done(false, #{process => Process, ready => Ready, cluster => Cluster, reasons => Reasons, message => text(Message)}).
names(Atoms) -> lists:join(", ", [atom_to_list(Atom) || Atom <- Atoms]).

look() ->
    case exists("member") andalso not exists("left") of
        false -> {none, []};
        true ->
            {All, _, _} = rabbit_node_monitor:read_cluster_status(),
            {case rabbit_boot_state:get() =:= ready andalso rabbit:is_running() of true -> ready; false -> waiting end, All}
    end.

%% A broker without a majority of the nodes pauses itself, so one that runs speaks for the cluster.
serving() -> rabbit:is_running() orelse later("the broker does not serve: it starts, or lacks a majority").

row(#{<<"members">> := Members}, Node) ->
    case [Id || Row = #{<<"id">> := Id} <- Members, node_of(Row) =:= Node] of [Id | _] -> {Id}; [] -> {null} end.
node_name(Node) -> atom_to_list(Node).
queues() -> mnesia:dirty_match_object(rabbit_durable_queue, amqqueue:pattern_match_all()).
name(Q) -> rabbit_misc:rs(amqqueue:get_name(Q)).
replicas(Q) -> rabbit_amqqueue:get_quorum_nodes(Q).
type(Q) -> case amqqueue:get_type(Q) of rabbit_quorum_queue -> quorum; rabbit_stream_queue -> stream; _ -> classic end.

%% One member may go when more than half of the others' nodes stay up and no quorum queue needs it.
first([], Blockers) -> {[], Blockers};
first([{Id, Node} | Rest], Blockers) ->
    {All, Running} = {rabbit_mnesia:cluster_nodes(all), rabbit_mnesia:cluster_nodes(running)},
    case (length(Running) - 1) * 2 > length(All) of
        false ->
            Reason = io_lib:format("of ~b members ~b serve", [length(All), length(Running)]),
            first(Rest, [blocker(Id, Reason, "wait until every member serves") | Blockers]);
        true ->
            case erpc:call(Node, rabbit_quorum_queue, list_with_minimum_quorum, [], 5000) of
                [] -> {[Id], []};
                Critical -> first(Rest, [blocker(name(Q), ["it would lose its quorum without ", Id], "wait until its replicas are up, or add one")
                                         || Q <- lists:sublist(Critical, 10)] ++ Blockers)
            end
    end.

%% Replicas that a queue lacks on the nodes that stay; the results of adding them.
spread(Q, Stay) ->
    case type(Q) of
        classic -> [];
        Type ->
            Kept = [Node || Node <- replicas(Q), lists:member(Node, Stay)],
            {resource, VHost, queue, Name} = amqqueue:get_name(Q),
            % Not the same nodes for every queue.
            Free = lists:sort(fun(A, B) -> erlang:phash2({Name, A}) =< erlang:phash2({Name, B}) end, Stay -- Kept),
            [case Type of
                 quorum -> rabbit_quorum_queue:add_member(VHost, Name, Node, 5000);
                 stream -> rabbit_stream_queue:add_replica(VHost, Name, Node)
             end || Node <- lists:sublist(Free, max(0, min(?REPLICAS, length(Stay)) - length(Kept)))]
    end.

%% Takes a node's replicas off it; the queues for which that is not possible. Lost: the node's volume is gone anyway.
strip(Q, Node, Stay, Lost) ->
    Nodes = case type(Q) of classic -> [amqqueue:qnode(Q)]; _ -> replicas(Q) end,
    case {lists:member(Node, Nodes), type(Q)} of
        {false, _} -> [];
        {true, classic} -> [blocker(name(Q), "it is a classic queue on the member alone", "move its messages, then delete it")
                            || not Lost, amqqueue:get_exclusive_owner(Q) =:= none];
        {true, Type} ->
            Type =:= quorum andalso spread(Q, Stay),
            {resource, VHost, queue, Name} = amqqueue:get_name(Q),
            IsOnly = [N || N <- Nodes, lists:member(N, Stay)] =:= [],
            case Type of
                quorum -> again(10, fun() -> rabbit_quorum_queue:delete_member(VHost, Name, Node) end);
                stream when IsOnly -> {error, last_node};
                stream ->
                    {ok, Reply, _} = rabbit_stream_coordinator:delete_replica(maps:get(name, amqqueue:get_type_state(Q)), Node),
                    Reply
            end =:= ok orelse Lost andalso IsOnly orelse throw({stuck, Q}),
            []
    end.

strip_all(Node, Stay, Lost) ->
    Blockers = lists:append([try strip(Q, Node, Stay, Lost)
        catch throw:{stuck, _} -> [blocker(name(Q), "its replica cannot be taken off the member now", "bring its other replicas back, or add one")]
        end || Q <- lists:keysort(1, queues())]),
    Blockers =:= [] orelse unsafe(lists:sublist(Blockers, 10)).

again(1, Run) -> Run();
again(Times, Run) ->
    case Run() of
        {error, last_node} = Error -> Error;
        {error, _} -> timer:sleep(500), again(Times - 1, Run);
        Result -> Result
    end.

%% Before a node leaves: no client may declare anything on it while its replicas go.
empty(Stay) ->
    [unsafe(Blockers) || Q <- queues(), type(Q) =:= classic, Blockers <- [strip(Q, node(), Stay, false)], Blockers =/= []],
    rabbit_maintenance:suspend_all_client_listeners(),
    rabbit_maintenance:close_all_client_connections(),
    try strip_all(node(), Stay, false)
    catch throw:Refused -> rabbit_maintenance:resume_all_client_listeners(), throw(Refused)
    end.

%% On a member that stays: ends the membership of a node whose broker does not run.
drop(Node, Lost) ->
    serving(),
    All = rabbit_mnesia:cluster_nodes(all),
    lists:member(Node, All) andalso begin
        % A broker that just stopped is noticed a moment later.
        again(10, fun() -> case lists:member(Node, rabbit_mnesia:cluster_nodes(running)) of true -> {error, up}; false -> ok end end)
            =:= ok orelse unsafe([blocker(node_name(Node), "it serves", "let it leave")]),
        {Rest, Up} = {All -- [Node], rabbit_mnesia:cluster_nodes(running)},
        length(Up) * 2 > length(Rest) orelse
            unsafe([blocker(node_name(Node), "the members that remain would have no majority", "bring them back first")]),
        strip_all(Node, Up, Lost),
        ok = rabbit_mnesia:forget_cluster_node(Node, false),
        not lists:member(Node, rabbit_mnesia:cluster_nodes(all)) orelse later("the cluster still lists the member")
    end.

%% Live settings. Answers the exit code; Pending are the keys that wait for a restart.
set(ResultFile, Settings, Pending) ->
    Before = [value(Key) || {Key, _} <- Settings],
    [apply_setting(Key, Value) || {Key, Value} <- Settings, value(Key) =/= Value],
    Now = [{Key, value(Key)} || {Key, _} <- Settings],
    write(ResultFile, #{changed => [Value || {_, Value} <- Now] =/= Before, output => #{
        values => maps:from_list([{Key, text(io_lib:format("~p", [Value]))} || {Key, Value} <- Now]),
        pendingRestart => [text(Key) || Key <- Pending]}}),
    0.

value('vm_memory_high_watermark.absolute') -> element(2, vm_memory_monitor:get_vm_memory_high_watermark());
value('disk_free_limit.absolute') -> rabbit_disk_monitor:get_disk_free_limit();
value(Key) -> element(2, application:get_env(rabbit, Key)).
apply_setting('vm_memory_high_watermark.absolute', Value) -> vm_memory_monitor:set_vm_memory_high_watermark({absolute, Value});
apply_setting('disk_free_limit.absolute', Value) -> rabbit_disk_monitor:set_disk_free_limit(Value);
apply_setting(Key, Value) -> application:set_env(rabbit, Key, Value).
