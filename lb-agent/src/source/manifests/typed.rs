//! Deserializes YAML directly into the type that its header names, so that errors keep their line.

use std::cell::Cell;
use std::fmt;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::object::{Object, ObjectKind};

/// Deserializes one object of this kind.
#[derive(Clone, Copy)]
pub(super) struct Typed(pub(super) ObjectKind);

impl<'de> DeserializeSeed<'de> for Typed {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        Ok(match self.0 {
            ObjectKind::Service => Object::Service(Box::new(Service::deserialize(deserializer)?)),
            ObjectKind::EndpointSlice => {
                Object::EndpointSlice(Box::new(EndpointSlice::deserialize(deserializer)?))
            }
            ObjectKind::Node => Object::Node(Box::new(Node::deserialize(deserializer)?)),
            ObjectKind::ServiceCidr => Object::ServiceCidr(Box::new(ServiceCIDR::deserialize(deserializer)?)),
            ObjectKind::Pod => Object::Pod(Box::new(Pod::deserialize(deserializer)?)),
        })
    }
}

/// Deserializes the objects of a `List` whose items have these kinds. Items with `None` are
/// skipped.
#[derive(Clone, Copy)]
pub(super) struct TypedList<'a> {
    /// The items' kinds.
    pub(super) kinds: &'a [Option<ObjectKind>],
    /// The index of the current item. It tells which item an error is about.
    pub(super) position: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for TypedList<'_> {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TypedList<'_> {
    type Value = Vec<Object>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a List")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                objects = map.next_value_seed(Items(&self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(objects)
    }
}

struct Items<'a>(&'a TypedList<'a>);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        // `items:` without a value is an empty list.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Object>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the items of a List")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        for (index, kind) in self.0.kinds.iter().enumerate() {
            self.0.position.set(index);
            match *kind {
                Some(kind) => objects.extend(items.next_element_seed(Typed(kind))?),
                None => {
                    items.next_element::<IgnoredAny>()?;
                }
            }
        }
        Ok(objects)
    }
}
