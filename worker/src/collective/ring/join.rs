//! How the ranks of a generation find each other: each calls the next and answers the one before.

use super::wire::{HELLO_BYTES, Hello, WELCOME};
use crate::{collective::Identity, torch::socket::bound_resend};
use common::ids::{Generation, Rank};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt,
};
use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

/// How long one try to connect, or one greeting, may take.
const TRY: Duration = Duration::from_secs(5);
/// Between two tries to connect, and between two looks whether it is in vain.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the other machine may be silent.
const SILENCE: Duration = Duration::from_secs(12);
/// How long TCP waits at most before it sends again: a cable that comes and goes is found there. One and a half, for one that does so
/// once a second.
const RESEND: Duration = Duration::from_millis(1_500);
/// Why a join cannot be.
const OTHER_VERSION: &str =
    "a trainer of another version of llm2clip calls: update all machines of the job, then `llm2clip resume` it";
/// Why a join is given up.
const IN_VAIN: &str = "a later membership takes the place of this one";

/// The connections from the rank before and to the rank after this one.
pub(super) fn neighbours(
    listener: &TcpListener,
    identity: &Identity,
    deadline: Duration,
    in_vain: &(dyn Fn() -> bool + Sync),
) -> Result<(TcpStream, TcpStream), String> {
    let end = Instant::now() + deadline;
    let world = identity.peers.len();
    let rank = identity.rank.0 as usize;
    let (next, previous) = ((rank + 1) % world, (rank + world - 1) % world);
    std::thread::scope(|scope| {
        let calling = scope.spawn(|| call(&identity.peers[next], next, identity, (end, in_vain)));
        let answered = answer(listener, Rank(previous as u32), identity, (end, in_vain));
        let called = calling.join().map_err(|_| "the thread that connects panicked".to_owned())?;
        let (answered, called) = (answered?, called?);
        for stream in [&answered, &called] {
            let set = stream
                .set_nodelay(true)
                .and_then(|()| notice_silence(stream))
                .and_then(|()| stream.set_nonblocking(true));
            set.map_err(|error| error.to_string())?;
        }
        Ok((answered, called))
    })
}

/// Has the system close a connection whose other machine is off or out of reach: it answers for a process however long that
/// computes, and for a stopped one.
fn notice_silence(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 4)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 4)?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    let silence = u32::try_from(SILENCE.as_millis()).expect("it is a few seconds");
    sockopt::set_tcp_user_timeout(stream, silence)?;
    // An older kernel waits ever longer: ranks may lose each other over a cable that comes and goes, and begin again together.
    let _ = bound_resend(stream, RESEND);
    Ok(())
}

/// Until when something is tried, and what says that it is in vain.
type Until<'a> = (Instant, &'a (dyn Fn() -> bool + Sync));

/// Calls until it is welcome: the other one may still be in the membership before, and send it away.
fn call(address: &str, next: usize, identity: &Identity, (end, in_vain): Until<'_>) -> Result<TcpStream, String> {
    let hello = Hello { generation: identity.generation, rank: identity.rank }.encode();
    loop {
        let error = match connect(address, &hello).and_then(|stream| welcomed(stream, (end, in_vain))) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if in_vain() {
            return Err(IN_VAIN.to_owned());
        }
        if Instant::now() + PAUSE >= end {
            return Err(format!("rank {next} at {address} cannot be reached: {error}"));
        }
        std::thread::park_timeout(PAUSE);
    }
}

fn connect(address: &str, hello: &[u8; HELLO_BYTES]) -> std::io::Result<TcpStream> {
    let resolved = address.to_socket_addrs()?.next();
    let address = resolved.ok_or_else(|| std::io::Error::new(ErrorKind::NotFound, "the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, TRY)?;
    stream.write_all(hello)?;
    Ok(stream)
}

/// Waits for the other one's word. It may not listen yet, as long as it loads.
fn welcomed(mut stream: TcpStream, (end, in_vain): Until<'_>) -> std::io::Result<TcpStream> {
    stream.set_read_timeout(Some(PAUSE))?;
    let mut word = [0];
    loop {
        match stream.read(&mut word) {
            Ok(1) if word[0] == WELCOME => break,
            Ok(_) => return Err(std::io::Error::new(ErrorKind::ConnectionRefused, "it waits for another membership")),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if in_vain() || Instant::now() >= end {
                    return Err(std::io::Error::new(ErrorKind::TimedOut, "it has not answered"));
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// Takes connections until the right one comes; a caller of another generation is sent away, and calls again if it is of a later one.
fn answer(
    listener: &TcpListener,
    previous: Rank,
    identity: &Identity,
    (end, in_vain): Until<'_>,
) -> Result<TcpStream, String> {
    let fail = |what: &str, error: std::io::Error| format!("{what}: {error}");
    listener.set_nonblocking(true).map_err(|error| fail("the listener", error))?;
    let mut sent_away: BTreeSet<(Generation, Rank)> = BTreeSet::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("rank {previous} has not connected in time"));
        }
        if in_vain() {
            return Err(IN_VAIN.to_owned());
        }
        let timeout = left.min(PAUSE).try_into().map_err(|_| "the deadline is too far away".to_owned())?;
        let mut descriptors = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(fail("waiting for a peer", error.into())),
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(error) => return Err(fail("accepting a peer", error)),
        };
        let Some((bytes, mut stream)) = greeting(stream) else { continue };
        if Hello::is_of_another_version(&bytes) {
            return Err(OTHER_VERSION.to_owned());
        }
        match Hello::decode(&bytes) {
            Some(hello) if hello.generation == identity.generation && hello.rank == previous => {
                match stream.write_all(&[WELCOME]) {
                    Ok(()) => return Ok(stream),
                    Err(error) => tracing::info!(rank = previous.0, %error, "a peer is gone before it was welcome"),
                }
            }
            Some(hello) if sent_away.insert((hello.generation, hello.rank)) => {
                tracing::warn!(
                    generation = hello.generation.0,
                    rank = hello.rank.0,
                    "sent a peer away that is not of this ring"
                );
            }
            Some(_) => {}
            None => tracing::warn!("sent a caller away that is no peer"),
        }
    }
}

/// The first bytes of a caller; absent when it says less.
fn greeting(mut stream: TcpStream) -> Option<([u8; HELLO_BYTES], TcpStream)> {
    let mut bytes = [0; HELLO_BYTES];
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(TRY)).ok()?;
    stream.read_exact(&mut bytes).ok()?;
    stream.set_read_timeout(None).ok()?;
    Some((bytes, stream))
}
