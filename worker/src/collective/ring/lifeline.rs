//! Notices that a neighbour is gone, whatever else goes on: the system closes the connections of a process that dies.

use common::ids::Rank;
use rustix::event::{PollFd, PollFlags, poll};
use std::{
    net::TcpStream,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

/// The connections of a rank, watched and not read from.
#[derive(Debug)]
pub(in crate::collective) struct Lifeline {
    /// A connection that was seen closed is out.
    watched: Vec<(Rank, TcpStream)>,
}

/// What a wait ended with; neither when its time was over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::collective) struct Seen {
    /// Who has closed a connection; each connection is told once.
    pub lost: Option<Rank>,
    /// The other descriptor can be read.
    pub woken: bool,
}

impl Lifeline {
    pub(super) fn new(ranks: [Rank; 2], sockets: &[TcpStream; 2]) -> std::io::Result<Self> {
        let watched = ranks.into_iter().zip(sockets).map(|(rank, socket)| Ok((rank, socket.try_clone()?)));
        Ok(Self { watched: watched.collect::<std::io::Result<_>>()? })
    }

    /// Waits for a neighbour to close a connection or for `wake` to become readable; without a timeout, as long as it
    /// takes.
    ///
    /// # Errors
    /// When the system does.
    pub(in crate::collective) fn wait(
        &mut self,
        wake: BorrowedFd<'_>,
        timeout: Option<Duration>,
    ) -> std::io::Result<Seen> {
        let timeout = timeout.map(|timeout| timeout.try_into().expect("a poll interval fits into a timespec"));
        let mut descriptors = vec![PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        let sockets = self.watched.iter().map(|(_, socket)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP));
        descriptors.extend(sockets);
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Seen::default()),
            Err(error) => return Err(error.into()),
        }
        // Errors and hang-ups are told without being asked for.
        let woken = !descriptors[0].revents().is_empty();
        let closed = descriptors[1..].iter().position(|descriptor| !descriptor.revents().is_empty());
        drop(descriptors);
        Ok(Seen { lost: closed.map(|at| self.watched.remove(at).0), woken })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        os::unix::net::UnixStream,
    };

    const MOMENT: Option<Duration> = Some(Duration::from_millis(20));

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_closed_connection_is_seen_behind_unread_bytes_and_told_once() {
        let ((near, mut far), (other, _far)) = (pair(), pair());
        let (mut bell, ear) = UnixStream::pair().unwrap();
        let mut lifeline = Lifeline::new([Rank(3), Rank(4)], &[near.try_clone().unwrap(), other]).unwrap();
        far.write_all(b"unread").unwrap();
        assert_eq!(lifeline.wait(ear.as_fd(), MOMENT).unwrap(), Seen::default(), "bytes are no sign of death");
        bell.write_all(b"!").unwrap();
        assert_eq!(lifeline.wait(ear.as_fd(), None).unwrap(), Seen { lost: None, woken: true });
        (&ear).read_exact(&mut [0]).unwrap();
        drop(far);
        assert_eq!(lifeline.wait(ear.as_fd(), None).unwrap(), Seen { lost: Some(Rank(3)), woken: false });
        assert_eq!(lifeline.wait(ear.as_fd(), MOMENT).unwrap(), Seen::default());
        let mut unread = [0; 6];
        (&near).read_exact(&mut unread).unwrap();
        assert_eq!(&unread, b"unread", "nothing was taken away");
    }
}
