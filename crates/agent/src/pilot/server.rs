//! The listening side: TCP, TLS 1.3, HTTP/1.1. Invariant: a client can hold a connection, but neither a thread nor
//! memory without bound; every step has a limit in time and size.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::Pilot;
use super::api::{self, Body};
use super::tls::{self, Identity, Peer};
use crate::log::{self, Level};

/// Connections at once of clients that have not shown a certificate (yet).
const STRANGERS: usize = 128;
/// Connections at once of operators and members.
const TRUSTED: usize = 64;
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time for everything that a client without a certificate may ask.
const STRANGER: Duration = Duration::from_secs(10);
/// Time for the head of a request, also the first one.
const HEAD: Duration = Duration::from_mins(1);

/// Listens so that a second pilot can listen beside this one while it takes over.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    match bind(address) {
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
            bind(SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port())))
        }
        other => other,
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(64)
}

/// Serves the pilot's API.
pub async fn serve(listener: TcpListener, pilot: Rc<Pilot>) {
    let slots = Arc::new(Semaphore::new(STRANGERS));
    let trusted = Arc::new(Semaphore::new(TRUSTED));
    loop {
        let Some((stream, slot)) = accept(&listener, &slots).await else { continue };
        refresh(&pilot.identity);
        let config = pilot.identity.borrow().config.clone();
        let (pilot, trusted) = (pilot.clone(), trusted.clone());
        tokio::task::spawn_local(async move {
            let Some((stream, peer)) = greet(stream, config, &pilot.member.cluster_uid).await else { return };
            let stranger = peer == Peer::Nobody;
            let answer = service_fn(move |request: Request<Incoming>| {
                let (pilot, peer) = (pilot.clone(), peer.clone());
                async move { Ok::<Response<Body>, std::convert::Infallible>(api::answer(pilot, peer, request).await) }
            });
            let served = connection().keep_alive(!stranger).serve_connection(TokioIo::new(stream), answer);
            if stranger {
                // Whoever cannot say who it is must not keep others out.
                let _ = tokio::time::timeout(STRANGER, served).await;
                return drop(slot);
            }
            let place = trusted.acquire_owned().await;
            drop(slot);
            let _ = served.await;
            drop(place);
        });
    }
}

/// Settings of an HTTP connection.
pub fn connection() -> hyper::server::conn::http1::Builder {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(16 * 1024).half_close(false);
    builder
}

/// The next connection.
pub async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, slot))
        }
        Err(error) => {
            log::event(Level::Warn, "a connection cannot be accepted", &[("error", &error)]);
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// The handshake; tells who is at the other end.
pub async fn greet(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    cluster_uid: &str,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Peer)> {
    let stream = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await.ok()?.ok()?;
    let peer = tls::peer(stream.get_ref().1.peer_certificates(), cluster_uid);
    Some((stream, peer))
}

/// Takes up certificates that were renewed.
pub fn refresh(identity: &RefCell<Identity>) {
    let reloaded = identity.borrow().reload();
    match reloaded {
        None => {}
        Some(Ok(new)) => {
            log::event(Level::Info, "the identity was renewed", &[]);
            identity.replace(new);
        }
        Some(Err(error)) => {
            log::event(Level::Error, "the renewed identity cannot be used, the old one stays", &[("error", &error)]);
        }
    }
}
