//! Leadership: one replica leads, its epoch rises with each change of hands, and an idle leader writes nothing.

use std::time::Duration;

use backlot_operator::leadership::{Candidate, release, run};
use backlot_testkit::api_server::{ApiServer, Connection};
use backlot_testkit::fault::{Fault, When};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Turns of the other tasks in each half of a simulated second; enough for an exchange over loopback.
const TURNS: usize = 50;

/// An operator replica that takes part.
struct Replica {
    candidate: Candidate,
    leases: Api<Lease>,
    connection: Connection,
    epoch: watch::Receiver<Option<u64>>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(server: &ApiServer, identity: &str, address: &str) -> Self {
        let connection = server.connect();
        let leases = Api::namespaced(connection.client(), "default");
        let candidate = Candidate { identity: identity.to_owned(), address: address.to_owned() };
        let (sender, epoch) = watch::channel(None);
        let task = tokio::spawn(run(leases.clone(), candidate.clone(), sender));
        Self { candidate, leases, connection, epoch, task }
    }

    fn leads(&self) -> Option<u64> {
        *self.epoch.borrow()
    }
}

/// Lets simulated seconds pass without starving the real sockets: the runtime is never idle, so that only this moves the clock.
async fn seconds(count: usize) {
    for _ in 0..2 * count {
        tokio::time::advance(Duration::from_millis(500)).await;
        for turn in 0..TURNS {
            tokio::task::yield_now().await;
            if turn % 10 == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }
}

/// Somebody who answers the question who it is, for as long as the task lives.
async fn answers(identity: &'static str) -> (JoinHandle<()>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _asked = stream.read(&mut [0; 256]).await;
            let _gone = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{identity}").as_bytes()).await;
        }
    });
    (task, address)
}

#[tokio::test(start_paused = true)]
async fn the_first_replica_takes_the_lease_and_writes_no_more() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a", "127.0.0.1:1");
    seconds(60).await;
    assert!(first.leads().is_some());
    assert_eq!(first.connection.writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_standby_follows_while_the_leader_answers_and_takes_over_after_its_silence() {
    let server = ApiServer::new();
    let (process, address) = answers("a").await;
    let first = Replica::start(&server, "a", &address);
    seconds(5).await;
    let (_process, address) = answers("b").await;
    let second = Replica::start(&server, "b", &address);
    seconds(40).await;
    let epoch = first.leads();
    assert!(epoch.is_some());
    assert_eq!(second.leads(), None);
    assert_eq!(second.connection.writes(), vec![]);
    process.abort();
    seconds(3).await;
    assert_eq!(second.leads(), None, "a short silence deposes nobody");
    seconds(25).await;
    assert!(second.leads() > epoch);
    // The former leader was only cut off from the standby: it sees the new holder at its next read.
    assert_eq!(first.leads(), None);
    let lease: Lease = server.get("default", "backlot-operator").unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("b"));
}

#[tokio::test(start_paused = true)]
async fn a_deposed_leader_that_does_not_reach_the_new_one_waits_for_its_silence_too() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a", "127.0.0.1:1");
    seconds(2).await;
    let second = Replica::start(&server, "b", "127.0.0.1:2");
    let mut waited = 0;
    while second.leads().is_none() {
        seconds(1).await;
        waited += 1;
        assert!(waited < 40);
    }
    let epoch = second.leads();
    seconds(8).await;
    assert_eq!((first.leads(), second.leads()), (None, epoch));
}

#[tokio::test(start_paused = true)]
async fn replicas_that_do_not_reach_each_other_do_not_take_turns_for_ever() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a", "127.0.0.1:1");
    let second = Replica::start(&server, "b", "127.0.0.1:2");
    seconds(120).await;
    let early = first.connection.writes().len() + second.connection.writes().len();
    seconds(240).await;
    let late = first.connection.writes().len() + second.connection.writes().len() - early;
    assert!(late <= early / 2 && early > 2, "{early} changes of hands in two minutes, then {late} in four");
}

#[tokio::test(start_paused = true)]
async fn another_process_at_the_leaders_address_is_not_the_leader() {
    let server = ApiServer::new();
    let (_process, address) = answers("somebody-else").await;
    let first = Replica::start(&server, "a", &address);
    seconds(2).await;
    first.task.abort();
    let second = Replica::start(&server, "b", "127.0.0.1:2");
    seconds(30).await;
    assert!(second.leads() > first.leads());
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_taken_without_waiting_for_silence() {
    let server = ApiServer::new();
    let (_process, address) = answers("a").await;
    let first = Replica::start(&server, "a", &address);
    seconds(2).await;
    let second = Replica::start(&server, "b", "127.0.0.1:2");
    seconds(2).await;
    first.task.abort();
    release(&first.leases, &first.candidate).await;
    seconds(6).await;
    assert!(second.leads() > first.leads());
}

#[tokio::test(start_paused = true)]
async fn releasing_takes_nothing_from_another_holder() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a", "127.0.0.1:1");
    seconds(2).await;
    release(&first.leases, &Candidate { identity: "b".to_owned(), address: String::new() }).await;
    let lease: Lease = server.get("default", "backlot-operator").unwrap();
    assert_eq!(lease.spec.unwrap().holder_identity.as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_restarted_process_takes_its_own_pods_lease_at_once_in_a_new_epoch() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a-1", "127.0.0.1:1");
    seconds(2).await;
    first.task.abort();
    let second = Replica::start(&server, "a-2", "127.0.0.1:1");
    seconds(2).await;
    assert!(second.leads() > first.leads());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_read_the_lease_pauses_and_goes_on_in_the_same_epoch() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a", "127.0.0.1:1");
    seconds(2).await;
    let epoch = first.leads();
    assert!(epoch.is_some());
    let leases = When::Matching { method: None, path: "/leases".to_owned(), times: 1000 };
    first.connection.inject(leases, Fault::Unavailable);
    seconds(6).await;
    assert_eq!(first.leads(), epoch, "one failed read deposes nobody");
    seconds(20).await;
    assert_eq!(first.leads(), None);
    first.connection.heal();
    seconds(6).await;
    assert_eq!(first.leads(), epoch);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_made_again_with_a_higher_epoch() {
    let server = ApiServer::new();
    let first = Replica::start(&server, "a", "127.0.0.1:1");
    seconds(2).await;
    let epoch = first.leads();
    server.delete::<Lease>("default", "backlot-operator", None).unwrap();
    // Epochs of a lost Lease follow the real clock.
    std::thread::sleep(Duration::from_millis(1100));
    seconds(6).await;
    assert!(first.leads() > epoch);
}

#[tokio::test(start_paused = true)]
async fn of_two_that_take_over_at_once_one_leads() {
    let server = ApiServer::new();
    let gone = Replica::start(&server, "a", "127.0.0.1:1");
    seconds(2).await;
    gone.task.abort();
    let (_b, at_b) = answers("b").await;
    let (_c, at_c) = answers("c").await;
    let replicas = [Replica::start(&server, "b", &at_b), Replica::start(&server, "c", &at_c)];
    for _ in 0..40 {
        seconds(1).await;
        let leaders = replicas.iter().filter_map(Replica::leads).count();
        assert!(leaders < 2, "two lead at the same time");
    }
    assert_eq!(replicas.iter().filter_map(Replica::leads).count(), 1);
    let writes: usize =
        replicas.iter().map(|replica| replica.connection.writes().iter().filter(|w| w.changed).count()).sum();
    assert_eq!(writes, 1);
}
