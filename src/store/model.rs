//! Contains a map with the interface of `DashMap` over loom's locks: the store's map in the models
//! that try every interleaving. dashmap tests its own locks; the models test whether the store uses
//! them well.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher as _},
    ops::{Deref, DerefMut},
};

use loom::sync::{Mutex, MutexGuard};

pub(crate) struct DashMap<K, V, S> {
    shards: [Mutex<HashMap<K, V>>; 4],
    hasher: S,
}

impl<K: Copy + Eq + Hash, V: Copy, S> DashMap<K, V, S> {
    pub(super) fn with_hasher_and_shard_amount(hasher: S, _shards: usize) -> Self {
        Self { shards: [(); 4].map(|()| Mutex::new(HashMap::new())), hasher }
    }

    /// Hashes without a seed, because a model must do the same in each run.
    fn lock(&self, key: &K) -> MutexGuard<'_, HashMap<K, V>> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.shards[(hasher.finish() % 4) as usize].lock().unwrap()
    }

    pub(super) fn hasher(&self) -> &S {
        &self.hasher
    }

    pub(super) fn get_mut(&self, key: &K) -> Option<RefMut<'_, K, V>> {
        let guard = self.lock(key);
        guard.contains_key(key).then(|| RefMut { guard, key: *key })
    }

    pub(super) fn entry(&self, key: K) -> Entry<'_, K, V> {
        let guard = self.lock(&key);
        let found = RefMut { guard, key };
        if found.guard.contains_key(&key) {
            Entry::Occupied(Occupied(found))
        } else {
            Entry::Vacant(VacantEntry(found))
        }
    }

    pub(super) fn iter(&self) -> std::vec::IntoIter<Pair<K, V>> {
        let pairs = |shard: &Mutex<HashMap<K, V>>| -> Vec<_> {
            shard.lock().unwrap().iter().map(|(key, value)| Pair(*key, *value)).collect()
        };
        self.shards.iter().flat_map(pairs).collect::<Vec<_>>().into_iter()
    }

    pub(super) fn retain(&self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        for shard in &self.shards {
            shard.lock().unwrap().retain(|key, value| keep(key, value));
        }
    }

    pub(super) fn capacity(&self) -> usize {
        0
    }

    pub(super) fn shrink_to_fit(&self) {}
}

pub(super) struct Pair<K, V>(K, V);

impl<K, V> Pair<K, V> {
    pub(super) fn key(&self) -> &K {
        &self.0
    }

    pub(super) fn value(&self) -> &V {
        &self.1
    }
}

pub(crate) struct RefMut<'a, K, V> {
    guard: MutexGuard<'a, HashMap<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Deref for RefMut<'_, K, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.guard[&self.key]
    }
}

impl<K: Eq + Hash, V> DerefMut for RefMut<'_, K, V> {
    fn deref_mut(&mut self) -> &mut V {
        self.guard.get_mut(&self.key).expect("locked since it was found")
    }
}

pub(super) enum Entry<'a, K, V> {
    Occupied(Occupied<'a, K, V>),
    Vacant(VacantEntry<'a, K, V>),
}

pub(super) struct Occupied<'a, K, V>(RefMut<'a, K, V>);

impl<'a, K, V> Occupied<'a, K, V> {
    pub(super) fn into_ref(self) -> RefMut<'a, K, V> {
        self.0
    }
}

pub(crate) struct VacantEntry<'a, K, V>(RefMut<'a, K, V>);

impl<K: Copy + Eq + Hash, V> VacantEntry<'_, K, V> {
    pub(super) fn insert(mut self, value: V) {
        self.0.guard.insert(self.0.key, value);
    }
}
