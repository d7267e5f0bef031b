//! `inspect`: serves the image's manifest to the operator, and probes; nothing else. No keeper, no engine, no volume.

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use backlot_standard::layout;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use super::api::{self, Body};
use super::tls::{Identity, Peer};
use super::{MemberName, PilotError, server};
use crate::args::Settings;
use crate::log::{self, Level};

/// Connections at once.
const CONNECTIONS: usize = 16;

/// Serves until the container ends.
pub fn run(settings: &Settings) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, serve(settings)),
        Err(error) => Err(PilotError::Start { what: "the runtime cannot start".to_owned(), error }),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::event(Level::Error, "the inspection cannot go on", &[("error", &error)]);
            ExitCode::FAILURE
        }
    }
}

async fn serve(settings: &Settings) -> Result<(), PilotError> {
    let failed = |error| PilotError::Start { what: format!("cannot listen on {}", settings.listen), error };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let identity = RefCell::new(Identity::load(&settings.paths.at(layout::IDENTITY_DIR))?);
    let listener = server::listen(settings.listen).map_err(failed)?;
    let cluster_uid = MemberName::from_env().cluster_uid;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let paths = Rc::new(settings.paths.clone());
    log::event(Level::Info, "serving the manifest", &[("listen", &settings.listen)]);
    loop {
        let accepted = tokio::select! {
            accepted = server::accept(&listener, &slots) => accepted,
            _ = terminate.recv() => return Ok(()),
        };
        let Some((stream, slot)) = accepted else { continue };
        server::refresh(&identity);
        let config = identity.borrow().config.clone();
        let (paths, cluster_uid) = (paths.clone(), cluster_uid.clone());
        tokio::task::spawn_local(async move {
            let Some((stream, peer)) = server::greet(stream, config, &cluster_uid).await else { return };
            let answer = service_fn(move |request: Request<Incoming>| {
                let response = answer(&paths, &peer, &request);
                async move { Ok::<Response<Body>, std::convert::Infallible>(response) }
            });
            let _ = server::connection().serve_connection(TokioIo::new(stream), answer).await;
            drop(slot);
        });
    }
}

fn answer(paths: &crate::paths::Paths, peer: &Peer, request: &Request<Incoming>) -> Response<Body> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/livez" | "/readyz") => api::text(StatusCode::OK, "serving the manifest"),
        (&Method::GET, "/v1/manifest") if *peer == Peer::Operator => api::manifest(paths),
        (&Method::GET, "/v1/manifest") => api::error(StatusCode::FORBIDDEN, "this needs the operator's certificate"),
        _ => api::error(StatusCode::NOT_FOUND, "there is nothing at this path"),
    }
}
