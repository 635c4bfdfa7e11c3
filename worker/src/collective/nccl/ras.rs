//! What NCCL's own diagnosis (RAS, since 2.24) says when an operation stalls: which ranks are missing or behind.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _},
    time::{Duration, Instant},
};

/// NCCL's own variable.
const ADDRESS_VARIABLE: &str = "NCCL_RAS_ADDR";
const DEFAULT_ADDRESS: &str = "localhost:28028";
/// So much of the text is kept.
const MAX_BYTES: usize = 4096;

/// Where this process's NCCL answers.
pub(super) fn address() -> String {
    let named = std::env::var(ADDRESS_VARIABLE).ok().filter(|address| !address.is_empty());
    named.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned())
}

/// Asks for the state of all communicators. The text ends where the answer, 4 KiB or the deadline does; absent when
/// nobody answers.
pub(super) fn fetch(address: &str, deadline: Duration) -> Option<String> {
    let end = Instant::now() + deadline;
    let left = || Some(end.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
    let mut addresses = address.to_socket_addrs().ok()?;
    let mut stream = addresses.find_map(|address| TcpStream::connect_timeout(&address, left()?).ok())?;
    stream.set_write_timeout(left()).ok()?;
    stream.write_all(b"verbose status\n").ok()?;
    let mut text = vec![0; MAX_BYTES];
    let mut length = 0;
    while let Some(left) = left() {
        stream.set_read_timeout(Some(left)).ok()?;
        match stream.read(&mut text[length..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => length += count,
        }
    }
    let text = String::from_utf8_lossy(&text[..length]).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{BufRead as _, BufReader},
        net::TcpListener,
        thread,
    };

    /// A server that answers one request with `answer`, and then closes or keeps silent.
    fn server(answer: String, closes: bool) -> (String, thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
            // The other side may have read enough.
            let _ = stream.write_all(answer.as_bytes());
            if !closes {
                let _ = stream.read(&mut [0]);
            }
            request
        });
        (address, answering)
    }

    #[test]
    fn the_whole_answer_is_kept() {
        let (address, answering) = server("1 communicator\nrank 1 is missing\n".to_owned(), true);
        assert_eq!(fetch(&address, Duration::from_secs(5)).as_deref(), Some("1 communicator\nrank 1 is missing"));
        assert_eq!(answering.join().unwrap(), "verbose status\n");
    }

    #[test]
    fn a_long_answer_is_cut_and_a_slow_one_is_not_waited_for() {
        let (address, answering) = server("x".repeat(1 << 20), true);
        assert_eq!(fetch(&address, Duration::from_secs(5)).map(|text| text.len()), Some(MAX_BYTES));
        answering.join().unwrap();
        let (address, answering) = server("half".to_owned(), false);
        let began = Instant::now();
        assert_eq!(fetch(&address, Duration::from_millis(100)).as_deref(), Some("half"));
        assert!(began.elapsed() < Duration::from_secs(2));
        answering.join().unwrap();
    }

    #[test]
    fn nobody_and_nothing_are_no_text() {
        assert_eq!(fetch("127.0.0.1:1", Duration::from_secs(1)), None);
        let (address, answering) = server(String::new(), true);
        assert_eq!(fetch(&address, Duration::from_secs(1)), None);
        answering.join().unwrap();
    }
}
