//! A proxy that hands requests on to a server and spoils the answers it is told to spoil.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is answered 503 and never reaches the server.
    Unavailable,
    /// It is never answered.
    Stall,
    /// The answer's body breaks off in the middle.
    Cut,
    /// The answer's body is shorter, and its Content-Length says so: only the caller can know.
    Short,
    /// The server gets it, and its answer is lost.
    Lost,
    /// Its answer takes that much longer.
    Late(Duration),
}

/// A running proxy. Dropped, it ends, and whoever it keeps waiting is let go.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: SocketAddr,
    fault: Box<dyn Fn(u64) -> Fault + Send + Sync>,
    requests: AtomicU64,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Proxy {
    /// Starts a proxy; `fault` says what happens to the n-th request, from 0 on.
    pub fn start(server: SocketAddr, fault: impl Fn(u64) -> Fault + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, end) = (Mutex::new(false), Condvar::new());
        let shared = Arc::new(Shared { server, fault: Box::new(fault), requests: AtomicU64::new(0), ended, end });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if *accepting.ended.lock().unwrap() {
                    return;
                }
                let shared = accepting.clone();
                // A client that gives up resets its connection, which is no failure of the test.
                std::thread::spawn(move || shared.serve(client).unwrap_or_default());
            }
        });
        Self { address, shared }
    }

    /// How many requests came.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.ended.lock().unwrap() = true;
        self.shared.end.notify_all();
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// One request; the connection ends with it.
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let request = read_request(&client)?;
        if request.is_empty() {
            return Ok(());
        }
        let fault = (self.fault)(self.requests.fetch_add(1, Ordering::SeqCst));
        match fault {
            Fault::Unavailable => {
                let answer = "HTTP/1.1 503 Slow Down\r\nContent-Length: 8\r\nConnection: close\r\n\r\nSlowDown";
                return client.write_all(answer.as_bytes());
            }
            Fault::Stall => {
                let ended = self.ended.lock().unwrap();
                drop(self.end.wait_while(ended, |ended| !*ended).unwrap());
                return Ok(());
            }
            Fault::Late(latency) => {
                let ended = self.ended.lock().unwrap();
                drop(self.end.wait_timeout_while(ended, latency, |ended| !*ended).unwrap());
            }
            _ => {}
        }
        let mut server = TcpStream::connect(self.server)?;
        server.write_all(&request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        client.write_all(&spoil(answer, fault))
    }
}

/// A request with its body, asking the server to close the connection after it.
fn read_request(client: &TcpStream) -> io::Result<Vec<u8>> {
    let mut reader = BufReader::new(client);
    let (mut request, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(Vec::new());
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        if line == "\r\n" {
            request.extend_from_slice(b"Connection: close\r\n\r\n");
            break;
        }
        request.extend_from_slice(line.as_bytes());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    request.extend(body);
    Ok(request)
}

fn spoil(mut answer: Vec<u8>, fault: Fault) -> Vec<u8> {
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let half = (answer.len() - body) / 2;
    match fault {
        Fault::Lost => Vec::new(),
        Fault::Cut => {
            answer.truncate(body + half);
            answer
        }
        Fault::Short => {
            let head = String::from_utf8_lossy(&answer[..body]).into_owned();
            let lines = head.split_inclusive("\r\n").map(|line| match line.split_once(':') {
                Some((name, _)) if name.eq_ignore_ascii_case("content-length") => format!("{name}: {half}\r\n"),
                _ => line.to_owned(),
            });
            let mut short = lines.collect::<String>().into_bytes();
            short.extend_from_slice(&answer[body..body + half]);
            short
        }
        _ => answer,
    }
}
