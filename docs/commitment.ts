type Members = { stream: string; id: string; type?: string; time?: string; source?: string; key?: string; topics?: string; metadata?: string };
const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);
const sha256 = async (x: number[]): Promise<number[]> => [...new Uint8Array(await crypto.subtle.digest("SHA-256", Uint8Array.from(x)))];
const lp = (x: Uint8Array): number[] => [x.length >>> 24, (x.length >>> 16) & 255, (x.length >>> 8) & 255, x.length & 255, ...x];

export async function commitment(csalt: Uint8Array, sent: string, m: Members): Promise<number[]> {
  const texts = [m.stream, m.id, m.type, m.time, m.source, m.key, m.topics, m.metadata];
  const members = texts.flatMap((text) => lp(utf8(text ?? "")));
  return sha256([...utf8("overlayd/packet/1\n"), ...csalt, ...members, ...(await sha256([...utf8(sent)]))]);
}
