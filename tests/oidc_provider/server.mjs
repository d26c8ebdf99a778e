// The certified oidc-provider with one client, on 127.0.0.1, for tests. Whoever types a name at the login page is it.
// Settings come as one JSON object on the command line; when it serves, it prints {"issuer": ...} on a line.
import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const settings = {
  port: 0,
  client_id: 'identree',
  client_secret: 'a-secret-of-the-tests-only',
  redirect_uris: ['http://127.0.0.1:8090/callback'],
  algorithm: 'RS256',
  auth_method: 'client_secret_basic',
  admins: ['carol'],
  ...JSON.parse(process.argv[2] ?? '{}'),
};

function signingKey(algorithm) {
  const [type, options] = {
    RS256: ['rsa', { modulusLength: 2048 }],
    PS256: ['rsa', { modulusLength: 2048 }],
    ES256: ['ec', { namedCurve: 'P-256' }],
    EdDSA: ['ed25519', {}],
  }[algorithm];
  const { privateKey } = generateKeyPairSync(type, options);
  return { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: algorithm, kid: `key-${algorithm}` };
}

function configuration() {
  return {
    clients: [{
      client_id: settings.client_id,
      client_secret: settings.client_secret,
      redirect_uris: settings.redirect_uris,
      token_endpoint_auth_method: settings.auth_method,
      id_token_signed_response_alg: settings.algorithm,
      grant_types: ['authorization_code'],
      response_types: ['code'],
    }],
    jwks: { keys: [signingKey(settings.algorithm)] },
    cookies: { keys: ['only-for-tests'] },
    claims: {
      openid: ['sub'],
      profile: ['name', 'preferred_username'],
      email: ['email'],
      groups: ['groups'],
    },
    // the code flow's ID token carries the claims itself
    conformIdTokenClaims: false,
    enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA'] },
    features: { devInteractions: { enabled: false } },
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    pkce: { required: () => true },
    ttl: { Interaction: 600, Session: 600, Grant: 600, IdToken: 300, AccessToken: 300 },
    async findAccount(ctx, name) {
      return {
        accountId: name,
        claims: async () => ({
          sub: `sub-${name}`,
          name,
          preferred_username: name,
          email: `${name}@test.invalid`,
          groups: settings.admins.includes(name) ? ['users', 'admins'] : ['users'],
        }),
      };
    },
    // nobody is asked for consent
    async loadExistingGrant(ctx) {
      const grant = new ctx.oidc.provider.Grant({
        clientId: ctx.oidc.client.clientId,
        accountId: ctx.oidc.session.accountId,
      });
      grant.addOIDCScope('openid profile email groups');
      await grant.save();
      return grant;
    },
  };
}

const page = (uid) => `<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Test sign-in</title></head>
<body><main><h1>Test sign-in</h1><form method="post" action="/interaction/${uid}">
<label for="login">User name</label> <input id="login" name="login" required autofocus>
<button>Sign in</button></form></main></body></html>`;

async function body(request) {
  let text = '';
  for await (const part of request) {
    text += part;
    if (text.length > 10_000) throw new Error('too long');
  }
  return new URLSearchParams(text);
}

const server = createServer();
server.listen(settings.port, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const provider = new Provider(issuer, configuration());
  const callback = provider.callback();
  server.on('request', async (request, response) => {
    const path = new URL(request.url, issuer).pathname;
    if (!path.startsWith('/interaction/')) {
      callback(request, response);
      return;
    }
    try {
      const { uid } = await provider.interactionDetails(request, response);
      if (request.method === 'POST') {
        const name = (await body(request)).get('login') ?? '';
        const result = /^[\w.-]{1,64}$/.test(name)
          ? { login: { accountId: name } }
          : { error: 'access_denied', error_description: 'no such user' };
        await provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
      } else {
        response.setHeader('content-type', 'text/html; charset=utf-8');
        response.end(page(uid));
      }
    } catch (error) {
      response.statusCode = 400;
      response.end(String(error.message));
    }
  });
  console.log(JSON.stringify({ issuer }));
});
// whoever started us holds our standard input open; when it ends, so do we
process.stdin.on('end', () => process.exit(0)).resume();
