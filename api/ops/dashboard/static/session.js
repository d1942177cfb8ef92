// Who uses the page. The key is kept in memory, or, if its user says so, in the tab's own storage; never in a URL.
import { useEffect, useState } from "./vendor/preact.js";
import { actAs, ApiError, get } from "./api.js";

const STORED = "tokenspool.key";

// Asks the API who we are. Returns {tenant, scopes, hasKey}, or null if it wants a key.
async function look() {
  try {
    const limits = await get("/v1/limits");
    return { tenant: limits.tenant.id, scopes: limits.scopes, hasKey: limits.key !== null };
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return null;
    if (error instanceof ApiError && error.status === 403) return { tenant: "", scopes: [], hasKey: true };
    throw error;
  }
}

// Returns {who, error, signIn(key, isKept), signOut, actFor(tenant)}; who is undefined while the API is asked.
export function useSession() {
  const [who, setWho] = useState(undefined);
  const [error, setError] = useState(null);

  async function ask() {
    try {
      setWho(await look());
      setError(null);
    } catch (failure) {
      setError(failure);
    }
  }

  useEffect(() => {
    actAs(sessionStorage.getItem(STORED), null);
    ask();
  }, []);

  return {
    who,
    error,
    again: ask,
    async signIn(key, isKept) {
      actAs(key, null);
      const found = await look();
      if (!found) throw new ApiError(401, { detail: "That key is not valid: it is unknown, revoked or expired." });
      if (isKept) sessionStorage.setItem(STORED, key);
      setWho(found);
    },
    signOut() {
      sessionStorage.removeItem(STORED);
      actAs(null, null);
      setWho(null);
    },
    // Throws if the API refuses the name; then everything stays as it is.
    async actFor(tenant) {
      actAs(null, tenant);
      try {
        setWho(await look());
      } catch (failure) {
        actAs(null, who.tenant);
        throw failure;
      }
    },
  };
}
