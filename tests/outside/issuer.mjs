// A real authorization server, panva's oidc-provider, at a port of its own; it prints its URL. Client
// "service" may ask for tokens of "read" and "call" for any resource, which carry the role in argv.
import { generateKeyPairSync } from 'node:crypto';
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const server = createServer().listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const resource = (audience) => ({ audience, scope: 'read call', accessTokenFormat: 'jwt', jwt: { sign: { alg: 'ES256' } } });
  const provider = new Provider(issuer, {
    clients: [{ client_id: 'service', client_secret: 'secret', grant_types: ['client_credentials'], redirect_uris: [], response_types: [], id_token_signed_response_alg: 'ES256' }],
    jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig' }] },
    scopes: ['read', 'call'],
    extraTokenClaims: () => ({ roles: [process.argv[2]] }),
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      dPoP: { enabled: true },
      resourceIndicators: { getResourceServerInfo: (ctx, indicator) => resource(indicator) },
    },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
