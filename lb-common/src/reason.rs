//! Why a packet was rejected, answered or dropped: one numbered list for the kernel programs, the
//! counters and the command line. Numbers are appended and never changed, because a number is the
//! index of its counter.

/// Why a packet was rejected or dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reason {
    /// Rejected: the Service has no usable endpoint.
    NoEndpoint = 0,
    /// Dropped: traffic policy `Local`, and every endpoint is on another node.
    NoLocalEndpoint = 1,
    /// Rejected: the address is a VIP, but no Service uses this port of it.
    UnknownPort = 2,
    /// Answered with RST: the connection's backend is gone.
    BackendGone = 3,
    /// Dropped: the slots named backends that were just replaced. A retransmission finds the new
    /// ones.
    StaleSlots = 4,
    /// Dropped: no free source port was found for the connection.
    NoSourcePort = 5,
    /// Dropped: the flow table did not accept the connection.
    FlowTableFull = 6,
    /// Dropped: the packet could not be rewritten completely.
    RewriteFailed = 7,
    /// Dropped: the answer to a rejected packet could not be built.
    AnswerFailed = 8,
    /// Dropped: the client is outside of the Service's `loadBalancerSourceRanges`.
    SourceRange = 9,
    /// Dropped: the node has no route to the backend, which is on another node, or back to the
    /// client.
    NoRoute = 10,
    /// Answered with ICMP: the packet does not fit into the link towards the backend on another
    /// node.
    TooBig = 11,
    /// Answered with ICMP: the packet's hop limit is exceeded at this node.
    HopLimit = 12,
    /// Dropped: a fragment to a VIP whose first fragment was not seen.
    UnknownFragment = 13,
    /// Answered with RST: a TCP segment, not a SYN, of an unknown connection whose backend cannot
    /// be determined.
    UnknownConnection = 14,
    /// Dropped without an answer: the rate limit of answers to the sender's prefix is exceeded.
    AnswerLimit = 15,
    /// Dropped: a packet from a network device has a source address of this node or of one of its
    /// Pods.
    ForgedSource = 16,
    /// Dropped: the address is in a Service CIDR, and no Service has it.
    UnallocatedAddress = 17,
}

impl Reason {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::NoEndpoint,
        Self::NoLocalEndpoint,
        Self::UnknownPort,
        Self::BackendGone,
        Self::StaleSlots,
        Self::NoSourcePort,
        Self::FlowTableFull,
        Self::RewriteFailed,
        Self::AnswerFailed,
        Self::SourceRange,
        Self::NoRoute,
        Self::TooBig,
        Self::HopLimit,
        Self::UnknownFragment,
        Self::UnknownConnection,
        Self::AnswerLimit,
        Self::ForgedSource,
        Self::UnallocatedAddress,
    ];

    /// The name in metrics, tables and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoint => "no_endpoint",
            Self::NoLocalEndpoint => "no_local_endpoint",
            Self::UnknownPort => "unknown_port",
            Self::BackendGone => "backend_gone",
            Self::StaleSlots => "stale_slots",
            Self::NoSourcePort => "no_source_port",
            Self::FlowTableFull => "flow_table_full",
            Self::RewriteFailed => "rewrite_failed",
            Self::AnswerFailed => "answer_failed",
            Self::SourceRange => "source_range",
            Self::NoRoute => "no_route",
            Self::TooBig => "too_big",
            Self::HopLimit => "hop_limit",
            Self::UnknownFragment => "unknown_fragment",
            Self::UnknownConnection => "unknown_connection",
            Self::AnswerLimit => "answer_limit",
            Self::ForgedSource => "forged_source",
            Self::UnallocatedAddress => "unallocated_address",
        }
    }

    /// Returns true if the sender of such a packet gets an answer.
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        match self {
            Self::NoEndpoint
            | Self::UnknownPort
            | Self::BackendGone
            | Self::TooBig
            | Self::HopLimit
            | Self::UnknownConnection => true,
            Self::NoLocalEndpoint
            | Self::StaleSlots
            | Self::NoSourcePort
            | Self::FlowTableFull
            | Self::RewriteFailed
            | Self::AnswerFailed
            | Self::SourceRange
            | Self::NoRoute
            | Self::UnknownFragment
            | Self::AnswerLimit
            | Self::ForgedSource
            | Self::UnallocatedAddress => false,
        }
    }

    /// The index of the reason's counter.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn numbers_are_positions_and_names_are_unique() {
        for (position, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::try_from(reason.index()), Ok(position));
            assert_eq!(
                Reason::ALL
                    .iter()
                    .filter(|other| other.name() == reason.name())
                    .count(),
                1
            );
        }
    }
}
