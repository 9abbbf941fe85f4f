//! Identities and counters, each a type of its own so that the compiler tells them apart.

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// The id as the standard's type.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                Uuid::from_bytes(self.0)
            }

            /// The short form for tables: the last eight hex digits, which are random in a UUIDv7.
            #[must_use]
            pub fn short(self) -> String {
                self.0[12..].iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid.into_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.uuid().fmt(formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self.uuid())
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self::from)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.uuid())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id! {
    /// A controller's store. Epochs, reports and inventories are scoped by it.
    OwnerId
}
uuid_id! {
    /// One instance of a workload: a UUIDv7.
    InstanceId
}
uuid_id! {
    /// A launcher's data directory, made once: two machines with one name differ here.
    NodeUuid
}
uuid_id! {
    /// The kernel's boot id of a node: when it changes, nothing that ran before still runs.
    BootId
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Default, Debug,
            Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

counter! {
    /// The how-manieth try to run an instance, from 1. Raised and committed before each START.
    Attempt(u32)
}
counter! {
    /// A launcher's session: raised and persisted by the launcher before each HELLO, so that it
    /// rises across restarts of launcher and scheduler alike.
    SessionEpoch(u64)
}
counter! {
    /// The position of a START in its session, from 1.
    Seq(u64)
}
counter! {
    /// Raised by a controller at each start on its store; a START of an older one is refused.
    ControllerEpoch(u64)
}
counter! {
    /// The term of the active scheduler; launchers obey the highest that they have seen.
    Term(u64)
}
counter! {
    /// Rises whenever a node's free capacity has grown. Scoped by the scheduler's incarnation.
    Generation(u64)
}
counter! {
    /// The version of one attempt's state at its launcher: the highest wins.
    Version(u64)
}
