//! The line protocol, client's side: one connection, one command, one line back.

use std::io::{BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest wait for a connection or an answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// Sends `command` to the engine at `address` and returns its answer.
pub fn ask(address: &str, secret: &str, command: &str) -> Result<String, Error> {
    let mut last = Error::new(ErrorKind::NotFound, "the name has no address");
    for socket in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&socket, PATIENCE) {
            Ok(stream) => return exchange(stream, secret, command),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn exchange(mut stream: TcpStream, secret: &str, command: &str) -> Result<String, Error> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(format!("AUTH {secret}\n{command}\n").as_bytes())?;
    let mut lines = BufReader::new(stream).lines();
    let mut next = || lines.next().unwrap_or_else(|| Err(Error::new(ErrorKind::UnexpectedEof, "the engine hung up")));
    let greeting = next()?;
    if greeting != "OK" {
        return Ok(greeting);
    }
    next()
}
