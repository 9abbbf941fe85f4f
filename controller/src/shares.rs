//! Places of which there are a fixed number, and no tenant may hold more than its share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Shares {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    most: usize,
    /// Of one tenant.
    share: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_tenant: HashMap<Arc<str>, usize>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    inner: Arc<Inner>,
    tenant: Option<Arc<str>>,
}

/// So many are held, by all or by the tenant alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Most(usize),
    Share(usize),
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shares {
    pub(crate) fn new(most: usize, share: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                most,
                share,
                held: Mutex::default(),
            }),
        }
    }

    /// A place for a tenant's user, or for an administrator, whom no share holds back.
    pub(crate) fn take(&self, tenant: Option<&Arc<str>>) -> Result<Place, Full> {
        let Inner { most, share, .. } = *self.inner;
        let mut held = self.inner.held();
        if held.all >= most {
            return Err(Full::Most(most));
        }
        if let Some(tenant) = tenant {
            let own = held.by_tenant.entry(Arc::clone(tenant)).or_default();
            if *own >= share {
                return Err(Full::Share(share));
            }
            *own += 1;
        }
        held.all += 1;
        drop(held);
        Ok(Place {
            inner: Arc::clone(&self.inner),
            tenant: tenant.cloned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.inner.held();
        held.all -= 1;
        if let Some(tenant) = &self.tenant
            && let Some(own) = held.by_tenant.get_mut(tenant)
        {
            *own -= 1;
            if *own == 0 {
                held.by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_takes_all_places() {
        let shares = Shares::new(3, 2);
        let (many, few): (Arc<str>, Arc<str>) = ("many".into(), "few".into());
        let greedy = [(); 2].map(|()| shares.take(Some(&many)).unwrap());
        assert_eq!(shares.take(Some(&many)).unwrap_err(), Full::Share(2));
        let other = shares.take(Some(&few)).unwrap();
        assert_eq!(shares.take(None).unwrap_err(), Full::Most(3));
        drop(greedy);
        let admin = [(); 2].map(|()| shares.take(None).unwrap());
        assert_eq!(shares.take(Some(&many)).unwrap_err(), Full::Most(3));
        drop((other, admin));
        assert!(shares.inner.held().by_tenant.is_empty());
    }
}
