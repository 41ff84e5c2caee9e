//! Bytes in the pieces that they arrived in.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Pieces below this are gathered: to keep each where it is would cost more than it holds.
const OWN_PIECE: usize = 1 << 12;

/// Bytes in pieces. What lies in one piece is taken out without a copy.
#[derive(Debug, Default)]
pub struct Rope {
    pieces: VecDeque<Bytes>,
    /// Small pieces, behind the others.
    gathered: BytesMut,
    len: usize,
}

impl Rope {
    /// Adds a piece.
    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        if piece.len() < OWN_PIECE {
            self.gathered.extend_from_slice(&piece);
            return;
        }
        self.seal();
        self.pieces.push_back(piece);
    }

    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            self.pieces.push_back(self.gathered.split().freeze());
        }
    }

    /// The first bytes, to read and to take out; there are so many.
    pub fn first(&mut self, len: usize) -> impl Buf + '_ {
        debug_assert!(len <= self.len);
        self.seal();
        self.take(len)
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&self.gathered, Bytes::as_ref)
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        self.seal();
        while let Some(piece) = self.pieces.front_mut().filter(|_| count > 0) {
            let here = count.min(piece.len());
            piece.advance(here);
            count -= here;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        self.seal();
        if let Some(piece) = self.pieces.front_mut().filter(|piece| piece.len() > len) {
            self.len -= len;
            return piece.split_to(len);
        }
        if self.pieces.front().is_some_and(|piece| piece.len() == len) {
            self.len -= len;
            return self.pieces.pop_front().unwrap_or_default();
        }
        let mut whole = BytesMut::with_capacity(len);
        while whole.len() < len {
            let chunk = self.chunk();
            let here = chunk.len().min(len - whole.len());
            whole.extend_from_slice(&chunk[..here]);
            self.advance(here);
        }
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lies_in_one_piece_is_not_copied() {
        let mut rope = Rope::default();
        let piece = Bytes::from(vec![7; 3 * OWN_PIECE]);
        rope.push(Bytes::from_static(b"head"));
        rope.push(piece.clone());
        assert_eq!((rope.get_u8(), rope.remaining()), (b'h', 3 + piece.len()));
        assert_eq!(&rope.first(3).copy_to_bytes(3)[..], b"ead");
        let taken = [rope.copy_to_bytes(OWN_PIECE), rope.copy_to_bytes(2 * OWN_PIECE)];
        assert_eq!(taken.map(|part| part.as_ptr()), [piece.as_ptr(), piece[OWN_PIECE..].as_ptr()]);
        assert_eq!((rope.remaining(), rope.chunk()), (0, &[][..]));
    }

    proptest! {
        /// However bytes arrive and are taken out, they are the same bytes.
        #[test]
        fn pieces_do_not_matter(
            arrivals in prop::collection::vec(prop_oneof![0usize..20, 4000usize..9000], 0..12),
            takes in prop::collection::vec((0usize..6000, any::<bool>()), 0..20),
        ) {
            let total: usize = arrivals.iter().sum();
            let bytes: Bytes = (0..total).map(|at| (at * 31 % 251) as u8).collect::<Vec<_>>().into();
            let (mut rope, mut sent) = (Rope::default(), 0);
            let mut read = 0;
            let mut takes = takes.into_iter();
            for len in arrivals {
                rope.push(bytes.slice(sent..sent + len));
                sent += len;
                let Some((len, is_taken)) = takes.next() else { continue };
                let len = len.min(rope.remaining());
                if is_taken {
                    prop_assert_eq!(rope.copy_to_bytes(len), bytes.slice(read..read + len));
                } else {
                    rope.advance(len);
                }
                read += len;
            }
            prop_assert_eq!(rope.remaining(), total - read);
            let rest = rope.first(total - read).copy_to_bytes(total - read);
            prop_assert_eq!(rest, bytes.slice(read..));
        }
    }
}
